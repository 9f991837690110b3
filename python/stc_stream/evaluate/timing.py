"""Clocks for the CPU and for an NVIDIA GPU, and rounds in which several sides take turns.

A side's times mean little alone on a machine that others use; so every round times each side once,
one after the other, and what is reported are medians over the rounds and their ratios.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

Side = Callable[[], object]

SHORTEST_ROUND = 2e-3
"""Seconds that a CPU side fills with calls in a round, so that reading the clock costs nothing."""


_ESTIMATES = 3
_LONG = 0.05


class Clock(Protocol):
    """Seconds between a reading before some calls and one after them."""

    def __call__(self) -> float:
        """Return a reading, in seconds from anywhere."""

    def calls(self, seconds: float) -> int:
        """Return how many calls of about `seconds` each belong between two readings."""


class WallClock:
    """The CPU's clock; short calls are repeated between two readings."""

    def __init__(
        self, now: Callable[[], float] = time.perf_counter, shortest_round: float = SHORTEST_ROUND
    ) -> None:
        self._now = now
        self._shortest_round = shortest_round

    def __call__(self) -> float:
        """Return the time of day."""
        return self._now()

    def calls(self, seconds: float) -> int:
        """Return the calls that fill the shortest round, at least one."""
        return max(1, math.ceil(self._shortest_round / max(seconds, 1e-9)))


class EventClock:
    """The GPU's own time between two readings, by events, each interval started with a cold L2.

    Writing over the L2 takes the GPU longer than the CPU needs to queue the calls that follow, so
    that launches are hidden, as they are in a model, unless there are many of them.
    """

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        # Four times the L2 leaves nothing of it, whichever lines it likes to keep.
        size = max(4 * getattr(properties, "L2_cache_size", 0), 256 * 2**20)
        self._cold = torch.empty(size, dtype=torch.int8, device="cuda")
        self._began: torch.cuda.Event | None = None
        self._seconds = 0.0

    def __call__(self) -> float:
        """Start an interval, or end the one under way; return the seconds in all intervals."""
        event = torch.cuda.Event(enable_timing=True)
        if self._began is None:
            self._cold.zero_()
            event.record()
            self._began = event
        else:
            event.record()
            event.synchronize()
            self._seconds += self._began.elapsed_time(event) / 1e3
            self._began = None
        return self._seconds

    def calls(self, seconds: float) -> int:
        """Return 1: a second call would find its inputs in the L2."""
        return 1


class PerCall:
    """A clock whose intervals are divided by the calls in them; pytest-benchmark reads this one."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.count = 1

    def __call__(self) -> float:
        """Return a reading of the clock, in seconds a call."""
        return self.clock() / self.count


@dataclass(frozen=True)
class Times:
    """What the rounds of one side came to, in seconds a call.

    Attributes:
        median: over the rounds.
        low: first quartile.
        high: third quartile.
        best: the shortest round.
        rounds: how many there were.
        calls: calls a round.
    """

    median: float
    low: float
    high: float
    best: float
    rounds: int
    calls: int

    @classmethod
    def of(cls, seconds: list[float], calls: int) -> Times:
        """Return the median and quartiles of a side's rounds."""
        if len(seconds) == 1:
            return cls(*seconds * 4, rounds=1, calls=calls)
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, low, high, min(seconds), len(seconds), calls)


class Turns:
    """Times sides in turns: a lap runs each of them once, `times` sums the laps up."""

    def __init__(self, sides: Mapping[str, Side], clock: Clock) -> None:
        """Warm every side up and find out how long it takes.

        Args:
            sides: what to time, by name.
            clock: `WallClock` or `EventClock`.
        """
        self._sides = dict(sides)
        self._clock = clock
        self.calls: dict[str, int] = {}
        self._seconds: dict[str, list[float]] = {name: [] for name in sides}
        self._estimates = {}
        for name, side in self._sides.items():
            self._estimates[name] = self._estimate(side)
            self.calls[name] = clock.calls(self._estimates[name])

    def lap_seconds(self) -> float:
        """Return about how long one lap of all sides takes."""
        return sum(self._estimates[name] * self.calls[name] for name in self._sides)

    def rounds(self, seconds: float, fewest: int, most: int) -> int:
        """Return how many laps fit into `seconds`, within bounds."""
        return min(most, max(fewest, int(seconds / max(self.lap_seconds(), 1e-9))))

    def lap(self, names: Iterable[str] | None = None) -> None:
        """Time each side once, or only those of `names`."""
        for name in self._sides if names is None else names:
            calls = self.calls[name]
            self._seconds[name].append(self._interval(self._sides[name], calls) / calls)

    def times(self, last: int) -> dict[str, Times]:
        """Return the times over their `last` laps of all sides that ran in any."""
        return {
            name: Times.of(seconds[-last:], self.calls[name])
            for name, seconds in self._seconds.items()
            if seconds
        }

    def _estimate(self, side: Side) -> float:
        # The least of a few: the first warms up, and one that was interrupted says nothing.
        once = self._interval(side, 1)
        if once > _LONG:
            return once
        once = min(self._interval(side, 1) for _ in range(_ESTIMATES))
        calls = self._clock.calls(once)
        if calls == 1:
            return once
        # A single short call is mostly the clock's own cost.
        return min(self._interval(side, calls) / calls for _ in range(_ESTIMATES))

    def _interval(self, side: Side, calls: int) -> float:
        start = self._clock()
        for _ in range(calls):
            side()
        return self._clock() - start
