"""Runs all variants of a benchmark in turns, after seeing that what they compute is right."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import cycle
from typing import Protocol

import torch
from torch import Tensor

from stc_stream.cacher import CacherConfig
from stc_stream.evaluate.bench.plan import BenchConfig, rounds_that_fit, turn
from stc_stream.evaluate.bench.results import BenchRun, MethodFidelity, RatioFidelity
from stc_stream.evaluate.bench.trial import (
    COMPILED,
    COMPILED_GRAPH,
    EAGER,
    GRAPH,
    Call,
    Trial,
    cacher_variant,
)
from stc_stream.evaluate.cost import CostModel
from stc_stream.evaluate.frames import FrameComparison, MethodTower
from stc_stream.evaluate.method import Method
from stc_stream.evaluate.timing import Turns, Variant, WallClock
from stc_stream.evaluate.variants import (
    Dense,
    Inputs,
    ScheduledCacher,
    compiled,
    eager,
    graphed,
    quiet,
    shared_copy,
)
from stc_stream.towers import read_tower
from stc_stream.towers.load import VisionModel
from stc_stream.video.sample import Clip

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far outputs may be apart, relative to the dense one's norm."""

_SHORTEST = 5e-3
_NO_GPU = "needs a CUDA GPU, which the tower is not on"


class WrongResult(Exception):
    """A variant does not compute what the tower does, so that its time would mean nothing."""


class Progress(Protocol):
    """Is told how a benchmark gets on."""

    def begin(self, words: str, steps: int | None) -> None:
        """A part begins; `steps` is how many it has, None where nobody knows."""

    def step(self) -> None:
        """A step of the part is done."""

    def end(self) -> None:
        """All is timed: what follows only sums it up."""


class TowerBench:
    """A tower dense and with a Cacher, timed on the same frames in one process.

    Args:
        tower: the tower; its module stays as it is.
        config: what to time.
        clip: frames.
        whole_layers: layers of the whole tower, where `tower` has only the first; None: it is
            whole.
        progress: told how it gets on; None: nobody is.
        methods: what else to time, each over its whole cycle.

    Raises:
        TypeError: a tower that a Cacher or a method cannot be attached to.
    """

    def __init__(
        self,
        tower: VisionModel,
        config: BenchConfig,
        clip: Clip,
        whole_layers: int | None = None,
        progress: Progress | None = None,
        methods: Sequence[Method] = (),
    ) -> None:
        self._tower = tower
        self._config = config
        self._clip = clip
        self._whole_layers = tower.layers if whole_layers is None else whole_layers
        self._progress = progress or _Silence()
        self._gpu = _on_gpu(tower)
        self._read = read_tower(tower.module)
        self._cost = CostModel.of(self._read, tower.tokens + tower.prefix_tokens)
        self._methods = tuple(methods)
        self._eager = eager(tower.module)
        self._compiled = shared_copy(tower.module) if config.compile else None
        self._cachers = [
            ScheduledCacher(tower, ratio, graph)
            for graph in ((False, True) if self._gpu else (False,))
            for ratio in config.update_ratios
        ]

    @torch.no_grad()
    def run(self) -> BenchRun:
        """Check, time, and see how close a Cacher and the methods stay.

        Ctrl-C ends it early: what was timed until then is returned.

        Raises:
            WrongResult: a refresh, or `update_ratio=1`, does not give what the dense tower does.
            KeyboardInterrupt: Ctrl-C before the first round had ended.
        """
        trials: list[Trial] = []
        fidelity: tuple[RatioFidelity, ...] = ()
        method_fidelity: tuple[MethodFidelity, ...] = ()
        complete = False
        try:
            self._check_ratio_one()
            for streams in self._config.streams:
                trials.append(trial := Trial(streams))
                with ExitStack() as towers:
                    self._prepare(trial)
                    for method in self._methods:
                        self._prepare_method(trial, method, towers)
                    self._time(trial)
            fidelity, method_fidelity = self._fidelity()
            complete = True
            self._progress.end()
        except KeyboardInterrupt:
            if not any(trial.rounds for trial in trials):
                raise
        timed = [trial for trial in trials if trial.rounds]
        return BenchRun(
            tower=self._tower,
            whole_layers=self._whole_layers,
            config=self._config,
            clip=self._clip.name,
            rounds={trial.streams: trial.rounds for trial in timed},
            dense=tuple(dense for trial in timed for dense in trial.dense()),
            settings=tuple(
                trial.setting(cacher, interval, self._config, self._cost)
                for trial in timed
                for cacher in self._cachers
                for interval in self._config.refresh_intervals
            ),
            fidelity=fidelity,
            complete=complete,
            methods=tuple(method for trial in timed for method in trial.methods()),
            method_fidelity=method_fidelity,
        )

    def _check_ratio_one(self) -> None:
        self._progress.begin("checking that update_ratio 1 is the dense tower", None)
        cacher = ScheduledCacher(self._tower, 1.0)
        for number in range(2):
            inputs = self._tower.batch(self._clip.images[number : number + 1])
            found = cacher.run(inputs, 1, frozenset())
            self._require_same(f"update_ratio=1, frame {number}", found, self._eager(inputs))

    def _prepare(self, trial: Trial) -> None:
        """Make every variant ready to be timed, each once it is known to be right."""
        streams = trial.streams
        self._progress.begin(f"warming up {_count(streams, 'stream')}", None)
        references, inputs = (self._frames(streams, age) for age in (0, 1))
        expected = self._eager(inputs)
        trial.calls[Call(EAGER)] = lambda: self._eager(inputs)
        fast = self._prepare_compiled(trial, inputs, expected)
        if self._gpu:
            self._prepare_graph(trial, GRAPH, self._eager, inputs, expected)
            if fast is not None:
                self._prepare_graph(trial, COMPILED_GRAPH, fast, inputs, expected)
        else:
            trial.notes[GRAPH] = _NO_GPU
        everything, nothing = frozenset(range(streams)), frozenset[int]()
        whole = self._eager(references)
        outputs: dict[float, Tensor] = {}
        for cacher in self._cachers:
            cacher.cacher.reset()
            found = cacher.run(references, streams, everything)
            self._require_same(f"a refresh at {cacher.update_ratio}", found, whole)
            found = cacher.run(inputs, streams, nothing)
            expected = outputs.setdefault(cacher.update_ratio, found)
            if cacher.graph:
                for _ in range(3):
                    found = cacher.run(inputs, streams, nothing)
                self._require_same(f"a CUDA graph at {cacher.update_ratio}", found, expected)
            for refreshes in self._config.mixes(streams):
                # All refreshes cost the same at every ratio.
                if refreshes < streams or cacher.update_ratio == self._config.update_ratios[0]:
                    batch = Call(cacher_variant(cacher.graph), cacher.update_ratio, refreshes)
                    trial.calls[batch] = self._call(cacher, inputs, streams, refreshes)

    def _prepare_compiled(self, trial: Trial, inputs: Inputs, expected: Tensor) -> Dense | None:
        if self._compiled is None:
            trial.notes[COMPILED] = "left out"
            return None
        self._progress.begin(f"compiling the dense tower, {_count(trial.streams, 'stream')}", None)
        run = compiled(self._compiled)
        try:
            with quiet():
                found = run(inputs)
            self._require_same("the compiled tower", found, expected)
        except Exception as error:
            # Whatever a compiler stumbles over, the other variants can still be timed.
            trial.notes[COMPILED] = _one_line(error)
            return None
        trial.calls[Call(COMPILED)] = lambda: run(inputs)
        return run

    def _prepare_graph(
        self, trial: Trial, variant: str, dense: Dense, inputs: Inputs, expected: Tensor
    ) -> None:
        try:
            run = graphed(dense, inputs)
            self._require_same(f"the dense tower {variant}", run(inputs), expected)
        except Exception as error:
            # A tower that waits for the GPU inside cannot be captured; each says so in its way.
            trial.notes[variant] = _one_line(error)
            return
        trial.calls[Call(variant)] = lambda: run(inputs)

    def _prepare_method(self, trial: Trial, method: Method, towers: ExitStack) -> None:
        """Run two cycles of a method, and see that frames it computes whole are dense."""
        streams = range(trial.streams)
        tower = towers.enter_context(MethodTower(self._tower, method))
        batches = [self._frames(trial.streams, age) for age in range(method.refresh_interval)]
        shares: list[float] = []
        for _ in range(2):
            for inputs in batches:
                tokens, record = tower.recorded(inputs, streams)
                found, dense = map(self._tower.patches_of, (tokens, self._eager(inputs)))
                if found.shape != dense.shape or not found.isfinite().all():
                    raise WrongResult(f"{method.name} gives no finite token for each patch")
                whole = torch.tensor(record.whole, device=found.device)
                if whole.any():
                    what = f"a frame that {method.name} computes whole"
                    self._require_same(what, found[whole], dense[whole])
                shares += record.share
        call = Call(method.name, batches=len(batches))
        trial.computed[call] = sum(shares) / len(shares)

        def run() -> None:
            for inputs in batches:
                tower.run(inputs, streams)

        trial.calls[call] = run

    def _call(
        self, cacher: ScheduledCacher, inputs: Inputs, streams: int, refreshes: int
    ) -> Variant:
        """Return what runs a batch with `refreshes` refreshes, each time of other streams."""
        turns = cycle(self._turns(streams, refreshes))
        return lambda: cacher.run(inputs, streams, next(turns))

    def _turns(self, streams: int, refreshes: int) -> list[frozenset[int]]:
        if refreshes in (0, streams):
            return [frozenset(range(refreshes))]
        return [
            refreshed
            for interval in self._config.refresh_intervals
            for batch in range(interval)
            if len(refreshed := turn(streams, interval, batch)) == refreshes
        ]

    def _time(self, trial: Trial) -> None:
        words = _count(trial.streams, "stream")
        self._progress.begin(f"trying all variants, {words}", len(trial.calls))
        clock = WallClock(self._tower.device, shortest_interval=_SHORTEST)
        # A CUDA graph is captured at the second call.
        warm_up = 2 if self._gpu else 0
        turns = trial.turns = Turns(trial.calls, clock, warm_up, self._progress.step)
        rounds = rounds_that_fit(self._config, turns.round_seconds)
        self._progress.begin(f"timing {words}, {_count(rounds, 'round')}", rounds)
        for _ in range(rounds):
            turns.run_round()
            self._progress.step()

    def _fidelity(self) -> tuple[tuple[RatioFidelity, ...], tuple[MethodFidelity, ...]]:
        """Run the clip's first frames at every ratio, with the longest interval, and by methods."""
        interval = self._config.refresh_intervals[-1]
        images = self._clip.images[: 2 * interval]
        self._progress.begin("how close to dense", len(images))
        ratios = self._config.update_ratios
        cachers = [Method("stc", CacherConfig.paper(ratio, interval)) for ratio in ratios]
        methods = [*cachers, *self._methods]
        with FrameComparison(self._tower, methods, layers=True) as frames:
            for image in images:
                frames.step(self._tower.batch([image]))
                self._progress.step()
            found = frames.fidelity
        by_ratio = zip(ratios, found[: len(ratios)], strict=True)
        by_method = zip(self._methods, found[len(ratios) :], strict=True)
        return (
            tuple(RatioFidelity(ratio, each) for ratio, each in by_ratio if each is not None),
            tuple(MethodFidelity(m.name, each) for m, each in by_method if each is not None),
        )

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


def _on_gpu(tower: VisionModel) -> bool:
    return tower.device.type == "cuda"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _one_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
