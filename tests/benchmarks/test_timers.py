"""What pytest-benchmark reads, and the turns of the variants that it does not time."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from benchmarks.timers import PerCall, time_between
from stc_stream.evaluate.timing import Timing, Turns, WallClock


class Hands:
    """A time of day that moves only when told."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_an_interval_is_divided_by_its_calls():
    hands = Hands()
    clock = PerCall(WallClock(now=hands))
    clock.count = 4
    start = clock()
    hands.seconds += 2.0
    assert clock() - start == pytest.approx(0.5)


@pytest.mark.parametrize("disabled", [False, True])
def test_the_others_go_before_each_round(disabled: bool):
    hands, order = Hands(), []
    timer = PerCall(WallClock(now=hands))

    def variant(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            order.append(name)
            hands.seconds += seconds

        return call

    def pedantic(run: Callable[[], None], setup: Callable[[], None], rounds: int) -> None:
        for _ in range(rounds):
            setup()
            start = timer()
            run()
            data.append(timer() - start)

    data: list[float] = []
    stats = None if disabled else SimpleNamespace(stats=SimpleNamespace(data=data))
    benchmark = SimpleNamespace(pedantic=pedantic, stats=stats)
    ours = variant("ours", 1e-3)
    variants = {"ours": ours, "dense": variant("dense", 1.0), "fast": variant("fast", 0.5)}
    turns = Turns(variants, timer.clock)
    order.clear()
    found = time_between(benchmark, timer, turns, "ours", ours, rounds=2)
    assert order == ["dense", "fast", "ours", "ours"] * 2
    if disabled:
        assert found == {}
        return
    assert found.keys() == variants.keys()
    assert found["dense"] == Timing.of([1.0, 1.0])
    assert (found["ours"].median, found["ours"].calls) == (pytest.approx(1e-3), 2)
