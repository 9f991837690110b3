"""What a benchmark came to."""

from __future__ import annotations

from dataclasses import dataclass

from stc_stream.evaluate.bench.plan import BenchConfig
from stc_stream.evaluate.fidelity import Fidelity
from stc_stream.evaluate.timing import Timing
from stc_stream.towers.load import VisionModel


@dataclass(frozen=True)
class Dense:
    """The tower without a Cacher, one frame of each stream a batch.

    Attributes:
        streams: how many.
        side: "eager", "compiled", "in a CUDA graph" or "compiled, in a CUDA graph".
        timing: milliseconds a frame, a batch's time divided by its frames; None where it could not
            be timed.
        note: why it could not; empty where it was.
    """

    streams: int
    side: str
    timing: Timing | None
    note: str = ""


@dataclass(frozen=True)
class Setting:
    """The tower with a Cacher, at one setting.

    Attributes:
        streams: frames a batch, one of each stream.
        update_ratio, refresh_interval: as in `CacherConfig`.
        graph: whether it ran in a CUDA graph.
        selective: milliseconds a frame of a batch without a refresh.
        refresh: of a batch of refreshes only.
        cycle: over `refresh_interval` batches, every stream refreshed once, in turn; its best is
            made of the batches' own.
        worst_batch_ms: the slowest batch of the cycle, milliseconds the whole batch, median.
        dense_side: the fastest dense side at so many streams, which it is held against.
        times_faster: dense time over the cycle's, median of the rounds' own ratios.
        times_faster_min: the same of the least times.
        cap: what the arithmetic allows `times_faster` to be.
        selective_times_faster, selective_cap: the same of a selective batch.
    """

    streams: int
    update_ratio: float
    refresh_interval: int
    graph: bool
    selective: Timing
    refresh: Timing
    cycle: Timing
    worst_batch_ms: float
    dense_side: str
    times_faster: float
    times_faster_min: float
    cap: float
    selective_times_faster: float
    selective_cap: float

    @property
    def saved(self) -> float:
        """Share of dense time saved over a cycle; negative when it lost."""
        return 1 - 1 / self.times_faster

    @property
    def percent_of_cap(self) -> float:
        """How much of what the arithmetic allows was reached, in percent."""
        return 100 * self.times_faster / self.cap

    @property
    def outcome(self) -> str:
        """ "wins" or "loses" where medians and minima agree, else "even"."""
        if self.times_faster > 1 and self.times_faster_min > 1:
            return "wins"
        if self.times_faster < 1 and self.times_faster_min < 1:
            return "loses"
        return "even"


@dataclass(frozen=True)
class RatioFidelity:
    """How close the tower stays to dense at one `update_ratio`."""

    update_ratio: float
    fidelity: Fidelity


@dataclass(frozen=True)
class BenchRun:
    """One run of `TowerBench`, finished or stopped.

    Attributes:
        tower: the tower, with the layers that were timed.
        whole_layers: layers of the whole tower.
        config: what was to be timed.
        clip: what its frames were.
        rounds: for each stream count, how many rounds were timed.
        dense: every dense side at every stream count.
        settings: every setting; those in a CUDA graph come after those without.
        fidelity: by update ratio; empty when stopped before.
        complete: False when it was stopped.
    """

    tower: VisionModel
    whole_layers: int
    config: BenchConfig
    clip: str
    rounds: dict[int, int]
    dense: tuple[Dense, ...]
    settings: tuple[Setting, ...]
    fidelity: tuple[RatioFidelity, ...]
    complete: bool
