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
        variant: "eager", "compiled", "in a CUDA graph" or "compiled, in a CUDA graph".
        timing: milliseconds a frame, a batch's time divided by its frames; None where it could not
            be timed.
        note: why it could not; empty where it was.
    """

    streams: int
    variant: str
    timing: Timing | None
    note: str = ""


@dataclass(frozen=True)
class Compared:
    """A cycle of batches against the fastest dense variant at as many streams.

    Attributes:
        streams: frames a batch, one of each stream.
        cycle: milliseconds a frame, over the batches after which what is computed repeats.
        dense_variant: the dense variant that it is held against.
        speedup: dense time over the cycle's, median of the rounds' own ratios.
        speedup_min: the same of the least times.
    """

    streams: int
    cycle: Timing
    dense_variant: str
    speedup: float
    speedup_min: float

    @property
    def saved(self) -> float:
        """Share of dense time saved over a cycle; negative when it lost."""
        return 1 - 1 / self.speedup

    @property
    def outcome(self) -> str:
        """ "wins" or "loses" where medians and minima agree, else "even"."""
        if self.speedup > 1 and self.speedup_min > 1:
            return "wins"
        if self.speedup < 1 and self.speedup_min < 1:
            return "loses"
        return "even"


@dataclass(frozen=True)
class Setting(Compared):
    """The tower with a Cacher, at one setting; every stream is refreshed once a cycle, in turn.

    Attributes:
        update_ratio, refresh_interval: as in `CacherConfig`.
        graph: whether it ran in a CUDA graph.
        selective: milliseconds a frame of a batch without a refresh.
        refresh: of a batch of refreshes only.
        worst_batch_ms: the slowest batch of the cycle, milliseconds the whole batch, median.
        max_speedup: what the arithmetic allows `speedup` to be.
        selective_speedup, selective_max_speedup: the same of a selective batch.
    """

    update_ratio: float
    refresh_interval: int
    graph: bool
    selective: Timing
    refresh: Timing
    worst_batch_ms: float
    max_speedup: float
    selective_speedup: float
    selective_max_speedup: float

    @property
    def percent_of_max(self) -> float:
        """How much of what the arithmetic allows was reached, in percent."""
        return 100 * self.speedup / self.max_speedup


@dataclass(frozen=True)
class MethodTiming(Compared):
    """The tower run by another method; the dense variants beside it are those without a graph.

    Attributes:
        method: its name, with its settings.
        refresh_interval: batches of a cycle.
        computed: share of the tokens that were computed, mean over layers and the cycle's frames.
    """

    method: str
    refresh_interval: int
    computed: float


@dataclass(frozen=True)
class RatioFidelity:
    """How close the tower stays to dense at one `update_ratio`."""

    update_ratio: float
    fidelity: Fidelity


@dataclass(frozen=True)
class MethodFidelity:
    """How close the tower stays to dense by another method."""

    method: str
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
        dense: every dense variant at every stream count.
        settings: every setting; those in a CUDA graph come after those without.
        fidelity: by update ratio; empty when stopped before.
        complete: False when it was stopped.
        methods: every other method at every stream count.
        method_fidelity: by method; empty when stopped before.
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
    methods: tuple[MethodTiming, ...] = ()
    method_fidelity: tuple[MethodFidelity, ...] = ()
