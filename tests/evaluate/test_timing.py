"""The arithmetic of the benchmarks' clocks and rounds, on a clock that tests wind."""

from __future__ import annotations

import pytest

from stc_stream.evaluate.timing import PerCall, Times, Turns, WallClock


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
    assert WallClock(shortest_round=2e-3).calls(seconds) == pytest.approx(calls, abs=1)


def test_an_interval_is_divided_by_its_calls():
    hands = Hands()
    clock = PerCall(WallClock(hands))
    clock.count = 4
    start = clock()
    hands.seconds += 2.0
    assert clock() - start == pytest.approx(0.5)


def test_times_are_median_quartiles_and_best():
    times = Times.of([5.0, 1.0, 2.0, 4.0, 3.0], calls=7)
    assert times == Times(median=3.0, low=2.0, high=4.0, best=1.0, rounds=5, calls=7)
    assert Times.of([2.0], calls=1) == Times(2.0, 2.0, 2.0, 2.0, 1, 1)


def test_sides_take_turns():
    hands, order = Hands(), []

    def side(name: str, length: float):
        def call() -> None:
            order.append(name)
            hands.seconds += length

        return call

    turns = Turns({"a": side("a", 1.0), "b": side("b", 2.0)}, WallClock(hands))
    order.clear()
    turns.lap()
    turns.lap()
    turns.lap(["b"])
    assert order == ["a", "b", "a", "b", "b"]
    assert turns.times(3)["a"].rounds == 2 and turns.times(3)["b"].rounds == 3


def test_a_short_side_is_repeated_and_reported_a_call():
    hands = Hands()
    turns = Turns({"short": hands.side(1e-4), "long": hands.side(0.5)}, WallClock(hands))
    assert turns.calls["short"] == pytest.approx(20, abs=1) and turns.calls["long"] == 1
    turns.lap()
    assert turns.times(1)["short"].median == pytest.approx(1e-4)
    assert turns.times(1)["long"].median == pytest.approx(0.5)


def test_warming_up_is_not_what_is_expected_of_a_side():
    hands = Hands()
    turns = Turns({"cold": hands.side(0.04, 0.01)}, WallClock(hands))
    assert turns.lap_seconds() == pytest.approx(0.01)


def test_rounds_fit_the_time_within_bounds():
    hands = Hands()
    turns = Turns({"a": hands.side(0.1), "b": hands.side(0.3)}, WallClock(hands))
    assert turns.rounds(4.0, fewest=5, most=40) == 10
    assert turns.rounds(0.4, fewest=5, most=40) == 5
    assert turns.rounds(400, fewest=5, most=40) == 40


def test_only_the_last_laps_count():
    hands = Hands()
    turns = Turns({"a": hands.side(0.06, 9.0, 1.0, 1.0)}, WallClock(hands))
    for _ in range(3):
        turns.lap()
    assert turns.times(3)["a"].median == 1.0 and turns.times(3)["a"].high > 1.0
    assert turns.times(2)["a"].high == 1.0
