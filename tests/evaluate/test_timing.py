"""The arithmetic of clocks, rounds and their medians, on a clock that tests wind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stc_stream.evaluate.timing import Timing, Turns, WallClock, median_ratio, timed


class Hands:
    """A time of day that moves only when told."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds

    def side(self, *lengths: float):
        """Return a side whose calls take these lengths in turn, then the last of them."""
        remaining = list(lengths)

        def call() -> None:
            self.seconds += remaining.pop(0) if len(remaining) > 1 else remaining[0]

        return call


@pytest.mark.parametrize(
    ("seconds", "calls"), [(1.0, 1), (2e-3, 1), (1.9e-3, 2), (1e-6, 2000), (0.0, 2_000_000)]
)
def test_calls_fill_the_shortest_round(seconds, calls):
    assert WallClock(shortest_interval=2e-3).calls(seconds) == pytest.approx(calls, abs=1)


def test_a_timing_is_median_quartiles_and_best(seed: int):
    timing = Timing.of([5.0, 1.0, 2.0, 4.0, 3.0], calls=7)
    assert timing == Timing(3.0, 2.0, 4.0, best=1.0, rounds=5, calls=7, mean=3.0, p95=4.8)
    assert Timing.of([2.0], calls=1) == Timing(2.0, 2.0, 2.0, 2.0, 1, 1, 2.0, 2.0)
    values = np.random.default_rng(seed).uniform(size=37)
    timing = Timing.of(values.tolist())
    found = (timing.low, timing.median, timing.high, timing.p95)
    assert found == pytest.approx(np.percentile(values, (25, 50, 75, 95)))
    assert (timing.best, timing.mean) == pytest.approx((values.min(), values.mean()))
    with pytest.raises(ValueError, match="^values must hold at least one round's time"):
        Timing.of([])


def test_the_median_ratio_is_of_the_rounds_own_ratios():
    # Of 2, 0.5 and 3; the medians' ratio is 2 / 2.
    assert median_ratio([2.0, 1.0, 6.0], [1.0, 2.0, 2.0]) == 2.0
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        median_ratio([1.0, 2.0], [1.0])


def test_a_clock_waits_for_its_gpu_and_for_no_cpu(monkeypatch: pytest.MonkeyPatch):
    awaited = []
    monkeypatch.setattr(torch.cuda, "synchronize", awaited.append)
    gpu = torch.device("cuda", 1)
    assert timed(lambda: "result", WallClock(gpu))[0] == "result"
    assert awaited == [gpu, gpu]
    timed(lambda: None, WallClock(torch.device("cpu")))
    timed(lambda: None, WallClock())
    assert len(awaited) == 2


def test_one_call_is_timed():
    hands = Hands()
    assert timed(hands.side(3.0), WallClock(now=hands)) == (None, pytest.approx(3.0))


def test_variants_take_turns():
    hands, order = Hands(), []

    def side(name: str, length: float):
        def call() -> None:
            order.append(name)
            hands.seconds += length

        return call

    turns = Turns({"a": side("a", 1.0), "b": side("b", 2.0)}, WallClock(now=hands))
    order.clear()
    turns.run_round()
    turns.run_round()
    turns.run_round(["b"])
    assert order == ["a", "b", "a", "b", "b"]
    assert turns.timings(3)["a"].rounds == 2 and turns.timings(3)["b"].rounds == 3


def test_a_short_variant_is_repeated_and_reported_a_call():
    hands = Hands()
    turns = Turns({"short": hands.side(1e-4), "long": hands.side(0.5)}, WallClock(now=hands))
    assert turns.calls["short"] == pytest.approx(20, abs=1) and turns.calls["long"] == 1
    turns.run_round()
    assert turns.timings(1)["short"].median == pytest.approx(1e-4)
    assert turns.timings(1)["long"].median == pytest.approx(0.5)


def test_warming_up_is_not_what_is_expected_of_a_variant():
    hands = Hands()
    turns = Turns({"cold": hands.side(0.04, 0.01)}, WallClock(now=hands))
    assert turns.round_seconds == pytest.approx(0.01)


def test_rounds_fit_the_time_within_bounds():
    hands = Hands()
    turns = Turns({"a": hands.side(0.1), "b": hands.side(0.3)}, WallClock(now=hands))
    assert turns.rounds_within(4.0, fewest=5, most=40) == 10
    assert turns.rounds_within(0.4, fewest=5, most=40) == 5
    assert turns.rounds_within(400, fewest=5, most=40) == 40


def test_only_the_last_rounds_count():
    hands = Hands()
    turns = Turns({"a": hands.side(0.06, 9.0, 1.0, 1.0)}, WallClock(now=hands))
    for _ in range(3):
        turns.run_round()
    assert turns.timings(3)["a"].median == 1.0 and turns.timings(3)["a"].high > 1.0
    assert turns.timings(2)["a"].high == 1.0


def test_a_round_that_is_stopped_leaves_nothing():
    hands = Hands()
    stops = iter([False, False, False, True])

    def stopped() -> None:
        hands.seconds += 1.0
        if next(stops):
            raise KeyboardInterrupt

    turns = Turns({"whole": hands.side(2.0), "stopped": stopped}, WallClock(now=hands))
    turns.run_round()
    turns.run_round()
    with pytest.raises(KeyboardInterrupt):
        turns.run_round()
    assert turns.rounds == 2
    assert turns.seconds("whole") == [2.0, 2.0] and turns.seconds("stopped") == [1.0, 1.0]


def test_each_variant_is_warmed_up_and_tried_once():
    hands, order = Hands(), []

    def variant(name: str):
        def call() -> None:
            order.append(name)
            hands.seconds += 1.0

        return call

    Turns({1: variant("a"), 2: variant("b")}, WallClock(now=hands), 2, lambda: order.append("|"))
    assert order == ["a", "a", "a", "|", "b", "b", "b", "|"]
