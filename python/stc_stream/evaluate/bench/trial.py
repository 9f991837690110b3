"""All variants at one stream count: their calls, the times of their turns, what these come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from stc_stream.evaluate.bench.plan import BenchConfig
from stc_stream.evaluate.bench.results import Dense, MethodTiming, Setting
from stc_stream.evaluate.cost import CostModel
from stc_stream.evaluate.timing import Timing, Turns, Variant, median_ratio
from stc_stream.evaluate.variants import ScheduledCacher

EAGER, COMPILED, GRAPH = "eager", "compiled", "in a CUDA graph"
COMPILED_GRAPH = "compiled, in a CUDA graph"


@dataclass(frozen=True)
class Call:
    """What a timed variant runs.

    Attributes:
        variant: of the dense tower; of one with a Cacher, `cacher_variant`; or a method's name.
        ratio: the Cacher's `update_ratio`; 0: there is none.
        refreshes: streams that it refreshes in the batch.
        batches: batches of a call, a method's whole cycle; 0: it is no method's, and runs one.
    """

    variant: str
    ratio: float = 0.0
    refreshes: int = 0
    batches: int = 0


@dataclass(eq=False)
class Trial:
    """All variants at one stream count, and their turns once they are timed.

    Attributes:
        streams: frames a batch, one of each stream.
        calls: what to time.
        notes: of dense variants that could not be, why.
        computed: of each method, the share of tokens that were computed.
        turns: None before they are timed.
    """

    streams: int
    calls: dict[Call, Variant] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    computed: dict[Call, float] = field(default_factory=dict)
    turns: Turns[Call] | None = None

    @property
    def rounds(self) -> int:
        """How many rounds were timed."""
        return 0 if self.turns is None else self.turns.rounds

    def dense(self) -> list[Dense]:
        """Return the dense variants, and why some were not timed."""
        found = []
        for variant in (EAGER, COMPILED, GRAPH, COMPILED_GRAPH):
            if Call(variant) in self.calls:
                found.append(Dense(self.streams, variant, self._timing(self._of(Call(variant)))))
            elif variant in self.notes:
                found.append(Dense(self.streams, variant, None, self.notes[variant]))
        return found

    def setting(
        self, tower: ScheduledCacher, interval: int, config: BenchConfig, cost: CostModel
    ) -> Setting:
        """Return what a Cacher's batches come to at one refresh interval."""
        ratio, variant = tower.update_ratio, cacher_variant(tower.graph)

        def of(refreshes: int) -> list[float]:
            # All refreshes cost the same at every ratio.
            shared = config.update_ratios[0] if refreshes == self.streams else ratio
            return self._of(Call(variant, shared, refreshes))

        batches = config.refreshes(self.streams, interval)
        cycles = [sum(times) / interval for times in zip(*map(of, batches), strict=True)]
        least = sum(min(of(count)) for count in batches) / interval
        dense_variant, dense = self._fastest_dense((EAGER, COMPILED, GRAPH, COMPILED_GRAPH))
        selective = of(0)
        return Setting(
            streams=self.streams,
            update_ratio=ratio,
            refresh_interval=interval,
            graph=tower.graph,
            selective=self._timing(selective),
            refresh=self._timing(of(self.streams)),
            cycle=replace(self._timing(cycles), best=1e3 * least / self.streams),
            worst_batch_ms=max(self.streams * self._timing(of(count)).median for count in batches),
            dense_variant=dense_variant,
            speedup=median_ratio(dense, cycles),
            speedup_min=min(dense) / least,
            max_speedup=cost.max_speedup(ratio, interval),
            selective_speedup=median_ratio(dense, selective),
            selective_max_speedup=cost.max_speedup(ratio),
        )

    def methods(self) -> list[MethodTiming]:
        """Return what the methods' cycles come to; like them, the dense tower has no graph."""
        return [self._method(call) for call in self.calls if call.batches]

    def _method(self, call: Call) -> MethodTiming:
        batches = [seconds / call.batches for seconds in self._of(call)]
        dense_variant, dense = self._fastest_dense((EAGER, COMPILED))
        return MethodTiming(
            streams=self.streams,
            method=call.variant,
            refresh_interval=call.batches,
            computed=self.computed[call],
            cycle=self._timing(batches),
            dense_variant=dense_variant,
            speedup=median_ratio(dense, batches),
            speedup_min=min(dense) / min(batches),
        )

    def _of(self, call: Call) -> list[float]:
        return [] if self.turns is None else self.turns.seconds(call)

    def _fastest_dense(self, variants: Sequence[str]) -> tuple[str, list[float]]:
        seconds = {name: self._of(Call(name)) for name in variants if Call(name) in self.calls}
        best = min(seconds, key=lambda name: Timing.of(seconds[name]).median)
        return best, seconds[best]

    def _timing(self, seconds: Sequence[float]) -> Timing:
        return Timing.of([1e3 * each / self.streams for each in seconds])


def cacher_variant(graph: bool) -> str:
    """Return what a tower with a Cacher is called."""
    return "with a Cacher in a CUDA graph" if graph else "with a Cacher"
