"""pytest-benchmark's timer, and its rounds between which other variants have their turns."""

from __future__ import annotations

from typing import Any

from stc_stream.evaluate.timing import Clock, Timing, Turns, Variant


class PerCall:
    """A clock whose intervals are divided by the calls in them; pytest-benchmark reads this one."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.count = 1

    def __call__(self) -> float:
        """Return a reading of the clock, in seconds a call."""
        return self.clock() / self.count


def time_between(
    benchmark: Any, timer: PerCall, turns: Turns[str], name: str, variant: Variant, rounds: int
) -> dict[str, Timing]:
    """Let pytest-benchmark time a variant, and before each of its rounds time all others.

    Args:
        benchmark: pytest-benchmark's fixture, whose timer is `timer`.
        timer: told how many calls a round has.
        turns: all variants, this one too, which was tried there.
        name: that of the variant in `turns`.
        variant: what pytest-benchmark times.
        rounds: how many.

    Returns:
        Seconds a call of every variant; empty where pytest-benchmark was told not to time.
    """
    timer.count = turns.calls[name]

    def run() -> None:
        for _ in range(timer.count):
            variant()

    def others_first() -> None:
        turns.run_round(other for other in turns.calls if other != name)

    benchmark.pedantic(run, setup=others_first, rounds=rounds)
    if benchmark.stats is None:
        return {}
    return turns.timings(rounds) | {name: Timing.of(benchmark.stats.stats.data, timer.count)}
