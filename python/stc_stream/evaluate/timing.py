"""Times on a CPU or a GPU: clocks, rounds in which variants take turns, and their medians.

The times of one variant mean little alone on a machine that others use. So all variants run in one
process, every round times each of them once, one after the other, and what is reported are medians
over the rounds and medians of the rounds' own ratios.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

Variant = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")

SHORTEST_INTERVAL = 2e-3
"""Seconds between two readings of the CPU's clock, so that reading it costs nothing."""


@dataclass(frozen=True)
class Timing:
    """How long a variant took, over its rounds: all in the unit of the values it was made of.

    Attributes:
        median: over the rounds.
        low: first quartile.
        high: third quartile.
        best: the shortest round.
        rounds: how many there were.
        calls: calls a round; a round's value is the mean of its calls.
        mean: over the rounds; None where it was read from a file that does not keep it.
        p95: 95th percentile, between the nearest two rounds; None likewise.
    """

    median: float
    low: float
    high: float
    best: float
    rounds: int
    calls: int = 1
    mean: float | None = None
    p95: float | None = None

    @classmethod
    def of(cls, values: Sequence[float], calls: int = 1) -> Timing:
        """Return what the rounds of a variant come to.

        Args:
            values: of each round, at least one.
            calls: calls a round.

        Raises:
            ValueError: there are no rounds.
        """
        if not values:
            raise ValueError("values must hold at least one round's time, but is empty")
        # One alone has no quantiles, twice the same has: itself.
        several = values if len(values) > 1 else [*values] * 2
        twentieths = statistics.quantiles(several, n=20, method="inclusive")
        return cls(
            median=statistics.median(values),
            low=twentieths[4],
            high=twentieths[14],
            best=min(values),
            rounds=len(values),
            calls=calls,
            mean=statistics.fmean(values),
            p95=twentieths[18],
        )


def median_ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the rounds' own ratios, `values` over `others`.

    Steadier than the ratio of the medians: the variants of a round saw the same machine.
    """
    return statistics.median(one / other for one, other in zip(values, others, strict=True))


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all that it was asked to do; on a CPU there is nothing to await."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Clock(Protocol):
    """Seconds between a reading before some calls and one after them."""

    def __call__(self) -> float:
        """Return a reading, in seconds from anywhere."""

    def calls(self, seconds: float) -> int:
        """Return how many calls of about `seconds` each belong between two readings."""


class WallClock:
    """The CPU's clock; short calls are repeated between two readings.

    Args:
        device: a GPU is waited for before each reading, so that its work is part of the time;
            None: it is not, and the time is the CPU's until the calls return.
        now: the time of day in seconds.
        shortest_interval: seconds between two readings that calls are to fill.
    """

    def __init__(
        self,
        device: torch.device | None = None,
        now: Callable[[], float] = time.perf_counter,
        shortest_interval: float = SHORTEST_INTERVAL,
    ) -> None:
        self._device = device
        self._now = now
        self._shortest_interval = shortest_interval

    def __call__(self) -> float:
        """Wait for the device and return the time of day."""
        if self._device is not None:
            wait_for(self._device)
        return self._now()

    def calls(self, seconds: float) -> int:
        """Return the calls that fill the shortest interval, at least one."""
        return max(1, math.ceil(self._shortest_interval / max(seconds, 1e-9)))


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


def timed(run: Callable[[], Result], clock: Clock) -> tuple[Result, float]:
    """Return what one call gives, and the seconds that it took."""
    start = clock()
    result = run()
    return result, clock() - start


class Turns(Generic[Key]):
    """Times variants in turns: a round times each of them once.

    Every variant is warmed up first, and tried to find out how long it takes.

    Args:
        variants: what to time, by name; each may be called as often as one likes.
        clock: what measures them.
        warm_up: calls of each before it is tried; the first try warms up as well.
        tried: called after each variant's try.
    """

    def __init__(
        self,
        variants: Mapping[Key, Variant],
        clock: Clock,
        warm_up: int = 0,
        tried: Callable[[], object] = lambda: None,
    ) -> None:
        self._variants = dict(variants)
        self._clock = clock
        self._rounds: list[dict[Key, float]] = []
        self._estimates: dict[Key, float] = {}
        self.calls: dict[Key, int] = {}
        for name, variant in self._variants.items():
            for _ in range(warm_up):
                variant()
            self._estimates[name] = self._estimate(variant)
            self.calls[name] = clock.calls(self._estimates[name])
            tried()

    @property
    def rounds(self) -> int:
        """How many rounds were run."""
        return len(self._rounds)

    @property
    def round_seconds(self) -> float:
        """About how long a round of all variants takes."""
        return sum(self._estimates[name] * calls for name, calls in self.calls.items())

    def rounds_within(self, seconds: float, fewest: int, most: int) -> int:
        """Return how many rounds fit into `seconds`, within bounds."""
        return min(most, max(fewest, int(seconds / max(self.round_seconds, 1e-9))))

    def run_round(self, names: Iterable[Key] | None = None) -> None:
        """Time each variant once, or only those of `names`; one that is stopped leaves nothing."""
        found = {
            name: self._interval(self._variants[name], self.calls[name]) / self.calls[name]
            for name in (self._variants if names is None else names)
        }
        self._rounds.append(found)

    def seconds(self, name: Key, last: int | None = None) -> list[float]:
        """Return the seconds a call of a variant, of each round or of the `last` ones."""
        values = [found[name] for found in self._rounds if name in found]
        return values if last is None else values[-last:]

    def timings(self, last: int | None = None) -> dict[Key, Timing]:
        """Return the seconds a call of each variant that ran, over all rounds or the `last`."""
        return {
            name: Timing.of(seconds, self.calls[name])
            for name in self._variants
            if (seconds := self.seconds(name, last))
        }

    def _estimate(self, variant: Variant) -> float:
        # The least of a few: the first warms up, and one that was interrupted says nothing.
        once = self._interval(variant, 1)
        if once > _LONG:
            return once
        once = min(self._interval(variant, 1) for _ in range(_ESTIMATES))
        calls = self._clock.calls(once)
        if calls == 1:
            return once
        # A single short call is mostly the clock's own cost.
        return min(self._interval(variant, calls) / calls for _ in range(_ESTIMATES))

    def _interval(self, variant: Variant, calls: int) -> float:
        start = self._clock()
        for _ in range(calls):
            variant()
        return self._clock() - start


_ESTIMATES = 3
_LONG = 0.05
