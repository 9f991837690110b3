"""Runs all sides of a benchmark in turns, after seeing that what they compute is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Protocol

import torch
from torch import Tensor

from stc_stream.evaluate.bench.plan import BenchConfig, rounds_that_fit, turn
from stc_stream.evaluate.bench.results import BenchRun, Dense, RatioFidelity, Setting
from stc_stream.evaluate.cost import CostModel
from stc_stream.evaluate.fidelity import FidelityTally, cosines, watch_layers
from stc_stream.evaluate.timing import Timing, Turns, Variant, WallClock, median_ratio
from stc_stream.evaluate.variants import Dense as DenseRun
from stc_stream.evaluate.variants import Inputs, Ours, compiled, eager, graphed, quiet, shared_copy
from stc_stream.towers import read_tower
from stc_stream.towers.load import VisionModel
from stc_stream.video.sample import Clip

EAGER, COMPILED, GRAPH = "eager", "compiled", "in a CUDA graph"
COMPILED_GRAPH = "compiled, in a CUDA graph"
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far outputs may be apart, relative to the dense one's norm."""

_SHORTEST = 5e-3
_NO_GPU = "needs a CUDA GPU, which the tower is not on"


class WrongResult(Exception):
    """A side does not compute what the tower does, so that its time would mean nothing."""


class Progress(Protocol):
    """Is told how a benchmark gets on."""

    def begin(self, words: str, steps: int | None) -> None:
        """A part begins, of so many steps; None: nobody knows."""

    def step(self) -> None:
        """A step of the part is done."""

    def end(self) -> None:
        """All is timed: what follows only sums it up."""


@dataclass(frozen=True)
class _Batch:
    """What a timed side runs: the dense tower, or ours with so many refreshes."""

    side: str
    ratio: float = 0.0
    refreshes: int = 0


@dataclass(eq=False)
class _Bout:
    """All sides at one stream count, and their turns once they are timed."""

    streams: int
    calls: dict[_Batch, Variant] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    turns: Turns[_Batch] | None = None

    @property
    def rounds(self) -> int:
        return 0 if self.turns is None else self.turns.rounds

    @property
    def seconds(self) -> dict[_Batch, list[float]]:
        if self.turns is None:
            return {}
        return {batch: self.turns.seconds(batch) for batch in self.calls}


class TowerBench:
    """A tower dense and with a Cacher, timed on the same frames in one process.

    Args:
        tower: the tower; its module stays as it is.
        config: what to time.
        clip: frames.
        whole_layers: layers of the whole tower, where `tower` has only the first; None: it is
            whole.
        progress: told how it gets on; None: nobody is.

    Raises:
        TypeError: a tower that a Cacher cannot be attached to.
    """

    def __init__(
        self,
        tower: VisionModel,
        config: BenchConfig,
        clip: Clip,
        whole_layers: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._tower = tower
        self._config = config
        self._clip = clip
        self._whole_layers = tower.layers if whole_layers is None else whole_layers
        self._progress = progress or _Silence()
        self._gpu = _on_gpu(tower)
        self._read = read_tower(tower.module)
        self._cost = CostModel.of(self._read, tower.tokens + tower.prefix_tokens)
        self._eager = eager(tower.module)
        self._compiled = shared_copy(tower.module) if config.compile else None
        self._ours = [
            Ours(tower, ratio, graph)
            for graph in ((False, True) if self._gpu else (False,))
            for ratio in config.update_ratios
        ]

    @torch.no_grad()
    def run(self) -> BenchRun:
        """Check, time, and see how close ours stays to dense.

        Ctrl-C ends it early: what was timed until then is returned.

        Raises:
            WrongResult: a refresh, or `update_ratio=1`, does not give what the dense tower does.
            KeyboardInterrupt: Ctrl-C before the first round had ended.
        """
        bouts: list[_Bout] = []
        fidelity: tuple[RatioFidelity, ...] = ()
        complete = False
        try:
            self._check_ratio_one()
            for streams in self._config.streams:
                bouts.append(bout := _Bout(streams))
                self._prepare(bout)
                self._time(bout)
            fidelity = self._fidelity()
            complete = True
            self._progress.end()
        except KeyboardInterrupt:
            if not any(bout.rounds for bout in bouts):
                raise
        timed = [bout for bout in bouts if bout.rounds]
        return BenchRun(
            tower=self._tower,
            whole_layers=self._whole_layers,
            config=self._config,
            clip=self._clip.name,
            rounds={bout.streams: bout.rounds for bout in timed},
            dense=tuple(dense for bout in timed for dense in _dense_of(bout)),
            settings=tuple(setting for bout in timed for setting in self._settings(bout)),
            fidelity=fidelity,
            complete=complete,
        )

    def _check_ratio_one(self) -> None:
        self._progress.begin("checking that update_ratio 1 is the dense tower", None)
        ours = Ours(self._tower, 1.0)
        for number in range(2):
            inputs = self._tower.batch(self._clip.images[number : number + 1])
            found = ours.run(inputs, 1, frozenset())
            self._require_same(f"update_ratio=1, frame {number}", found, self._eager(inputs))

    def _prepare(self, bout: _Bout) -> None:
        """Make every side ready to be timed, each once it is known to be right."""
        streams = bout.streams
        self._progress.begin(f"warming up {_count(streams, 'stream')}", None)
        references, inputs = (self._frames(streams, age) for age in (0, 1))
        expected = self._eager(inputs)
        bout.calls[_Batch(EAGER)] = lambda: self._eager(inputs)
        fast = self._prepare_compiled(bout, inputs, expected)
        if self._gpu:
            self._prepare_graph(bout, GRAPH, self._eager, inputs, expected)
            if fast is not None:
                self._prepare_graph(bout, COMPILED_GRAPH, fast, inputs, expected)
        else:
            bout.notes[GRAPH] = _NO_GPU
        everything, nothing = frozenset(range(streams)), frozenset[int]()
        whole = self._eager(references)
        outputs: dict[float, Tensor] = {}
        for ours in self._ours:
            ours.cacher.reset()
            found = ours.run(references, streams, everything)
            self._require_same(f"a refresh at {ours.update_ratio}", found, whole)
            found = ours.run(inputs, streams, nothing)
            expected = outputs.setdefault(ours.update_ratio, found)
            if ours.graph:
                for _ in range(3):
                    found = ours.run(inputs, streams, nothing)
                self._require_same(f"a CUDA graph at {ours.update_ratio}", found, expected)
            for refreshes in self._config.mixes(streams):
                # All refreshes cost the same at every ratio.
                if refreshes < streams or ours.update_ratio == self._config.update_ratios[0]:
                    batch = _Batch(_side(ours.graph), ours.update_ratio, refreshes)
                    bout.calls[batch] = self._call(ours, inputs, streams, refreshes)

    def _prepare_compiled(self, bout: _Bout, inputs: Inputs, expected: Tensor) -> DenseRun | None:
        if self._compiled is None:
            bout.notes[COMPILED] = "left out"
            return None
        self._progress.begin(f"compiling the dense tower, {_count(bout.streams, 'stream')}", None)
        run = compiled(self._compiled)
        try:
            with quiet():
                found = run(inputs)
            self._require_same("the compiled tower", found, expected)
        except Exception as error:
            # Whatever a compiler stumbles over, the other sides can still be timed.
            bout.notes[COMPILED] = _one_line(error)
            return None
        bout.calls[_Batch(COMPILED)] = lambda: run(inputs)
        return run

    def _prepare_graph(
        self, bout: _Bout, side: str, dense: DenseRun, inputs: Inputs, expected: Tensor
    ) -> None:
        try:
            run = graphed(dense, inputs)
            self._require_same(f"the dense tower {side}", run(inputs), expected)
        except Exception as error:
            # A tower that waits for the GPU inside cannot be captured; each says so in its way.
            bout.notes[side] = _one_line(error)
            return
        bout.calls[_Batch(side)] = lambda: run(inputs)

    def _call(self, ours: Ours, inputs: Inputs, streams: int, refreshes: int) -> Variant:
        """Return what runs a batch with so many refreshes, each time of other streams."""
        turns = cycle(self._turns(streams, refreshes))
        return lambda: ours.run(inputs, streams, next(turns))

    def _turns(self, streams: int, refreshes: int) -> list[frozenset[int]]:
        if refreshes in (0, streams):
            return [frozenset(range(refreshes))]
        return [
            refreshed
            for interval in self._config.refresh_intervals
            for batch in range(interval)
            if len(refreshed := turn(streams, interval, batch)) == refreshes
        ]

    def _time(self, bout: _Bout) -> None:
        words = _count(bout.streams, "stream")
        self._progress.begin(f"trying all sides, {words}", len(bout.calls))
        clock = WallClock(self._tower.device, shortest_interval=_SHORTEST)
        # A CUDA graph is captured at the second call.
        warm_up = 2 if self._gpu else 0
        turns = bout.turns = Turns(bout.calls, clock, warm_up, self._progress.step)
        rounds = rounds_that_fit(self._config, turns.round_seconds)
        self._progress.begin(f"timing {words}, {_count(rounds, 'round')}", rounds)
        for _ in range(rounds):
            turns.run_round()
            self._progress.step()

    def _settings(self, bout: _Bout) -> list[Setting]:
        return [
            self._setting(bout, ours, interval)
            for ours in self._ours
            for interval in self._config.refresh_intervals
        ]

    def _setting(self, bout: _Bout, ours: Ours, interval: int) -> Setting:
        streams, ratio, side = bout.streams, ours.update_ratio, _side(ours.graph)
        seconds = bout.seconds

        def of(refreshes: int) -> list[float]:
            shared = self._config.update_ratios[0] if refreshes == streams else ratio
            return seconds[_Batch(side, shared, refreshes)]

        batches = self._config.refreshes(streams, interval)
        cycles = [sum(times) / interval for times in zip(*map(of, batches), strict=True)]
        dense_side, dense = _fastest(seconds)
        selective = of(0)
        return Setting(
            streams=streams,
            update_ratio=ratio,
            refresh_interval=interval,
            graph=ours.graph,
            selective=_timing(selective, streams),
            refresh=_timing(of(streams), streams),
            cycle=replace(
                _timing(cycles, streams),
                best=1e3 * sum(min(of(count)) for count in batches) / interval / streams,
            ),
            worst_batch_ms=max(streams * _timing(of(count), streams).median for count in batches),
            dense_side=dense_side,
            times_faster=median_ratio(dense, cycles),
            times_faster_min=min(dense) * interval / sum(min(of(count)) for count in batches),
            cap=self._cost.max_speedup(ratio, interval),
            selective_times_faster=median_ratio(dense, selective),
            selective_cap=self._cost.max_speedup(ratio),
        )

    def _fidelity(self) -> tuple[RatioFidelity, ...]:
        """Run the clip's first frames through every ratio, with the longest interval."""
        interval = self._config.refresh_intervals[-1]
        images = self._clip.images[: 2 * interval]
        self._progress.begin("how close to dense", len(images))
        ours = [each for each in self._ours if not each.graph]
        tallies = {each.update_ratio: FidelityTally() for each in ours}
        for each in ours:
            each.cacher.reset()
        for number, image in enumerate(images):
            inputs, age = self._tower.batch([image]), number % interval
            refreshed = frozenset({0} if age == 0 else ())
            with watch_layers(self._read) as layers:
                tokens = self._eager(inputs)
                dense = [self._tower.patches_of(each) for each in (*layers.take(), tokens)]
            for each in ours:
                with watch_layers(each.cacher.tower) as layers:
                    tokens = each.run(inputs, 1, refreshed)
                    outputs = (*layers.take(), tokens)
                found = cosines([self._tower.patches_of(x) for x in outputs], dense)
                tallies[each.update_ratio].add(age, found[:-1], found[-1])
            self._progress.step()
        results = {ratio: tally.result() for ratio, tally in tallies.items()}
        return tuple(RatioFidelity(ratio, f) for ratio, f in results.items() if f is not None)

    def _frames(self, streams: int, age: int) -> Inputs:
        """Return a frame of each stream: streams look at other parts of the clip."""
        images = self._clip.images
        return self._tower.batch([images[(3 * s + age) % len(images)] for s in range(streams)])

    def _require_same(self, what: str, found: Tensor, expected: Tensor) -> None:
        apart = float((found.float() - expected.float()).norm() / expected.float().norm())
        limit = TOLERANCE[self._tower.dtype]
        if not apart <= limit:
            raise WrongResult(
                f"{what} differs from the dense tower by {apart:.2g} of its norm, where rounding "
                f"explains {limit:g}: nothing was timed"
            )


class _Silence:
    def begin(self, words: str, steps: int | None) -> None:
        pass

    def step(self) -> None:
        pass

    def end(self) -> None:
        pass


def _dense_of(bout: _Bout) -> list[Dense]:
    found = []
    for side in (EAGER, COMPILED, GRAPH, COMPILED_GRAPH):
        times = bout.seconds.get(_Batch(side), [])
        if times:
            found.append(Dense(bout.streams, side, _timing(times, bout.streams)))
        elif side in bout.notes:
            found.append(Dense(bout.streams, side, None, bout.notes[side]))
    return found


def _fastest(seconds: Mapping[_Batch, list[float]]) -> tuple[str, list[float]]:
    sides = {batch.side: times for batch, times in seconds.items() if not batch.ratio}
    best = min(sides, key=lambda side: Timing.of(sides[side]).median)
    return best, sides[best]


def _on_gpu(tower: VisionModel) -> bool:
    return tower.device.type == "cuda"


def _side(graph: bool) -> str:
    return "ours in a CUDA graph" if graph else "ours"


def _timing(seconds: Sequence[float], streams: int) -> Timing:
    return Timing.of([1e3 * each / streams for each in seconds])


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _one_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
