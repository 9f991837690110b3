"""A model dense and by several methods, frame by frame, on the same input and in turns."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from stc_stream.cacher.part import AttachedTower, BatchRecord
from stc_stream.evaluate.fidelity import (
    Fidelity,
    FidelityTally,
    LayerOutputs,
    cosines,
    token_cosines,
    watch_layers,
)
from stc_stream.evaluate.method import Method
from stc_stream.evaluate.opened import Opened
from stc_stream.evaluate.patched import FrameShares
from stc_stream.evaluate.timing import WallClock, timed, wait_for
from stc_stream.evaluate.variants import shared_copy
from stc_stream.towers import read_tower
from stc_stream.towers.load import VisionModel

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class FrameRun:
    """A frame that a method ran, and how close it stayed to dense.

    Attributes:
        features: the tower's output, [1, T, C], without prefix.
        seconds: how long the tower took.
        whole: whether the frame was computed whole.
        age: frames since the last that was; 0 where none was yet.
        share: the share of its tokens that were computed, mean over the layers.
        record: the same layer by layer, where the method tells.
        cosine: of each token's features to the dense ones, float32 [T].
        layers: of each layer's output to the dense one's, mean over tokens; nan where the method's
            layers have no such output; empty where layers were not asked for.
    """

    features: Tensor
    seconds: float
    whole: bool
    age: int
    share: float
    record: BatchRecord
    cosine: Tensor
    layers: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class ComparedFrame:
    """A frame, dense and by every method.

    Attributes:
        dense: the dense tower's output, [1, T, C], without prefix.
        dense_seconds: how long it took.
        runs: of each method, in their order.
    """

    dense: Tensor
    dense_seconds: float
    runs: tuple[FrameRun, ...]


class MethodTower(Opened):
    """A method on a tower of its own, which shares the weights of a model's.

    Args:
        model: stays as it is.
        method: whose tower part runs the copy.

    Attributes:
        method: as given.
        tower: the copy, as it is read.

    Raises:
        TypeError: a tower that the method can't run.
    """

    def __init__(self, model: VisionModel, method: Method) -> None:
        super().__init__()
        self.method = method
        self._module = shared_copy(model.module)
        self.tower = read_tower(self._module)
        self._attached: AttachedTower | None = None
        if method.tower is not None:
            self._attached = self._open.enter_context(method.tower.attach(self._module))

    def run(self, inputs: Inputs, streams: Sequence[Hashable] | None = None) -> Tensor:
        """Return the tower's `last_hidden_state` for frames of one stream, or of those named."""
        names: AbstractContextManager[None] = nullcontext()
        if streams is not None and self._attached is not None:
            names = self._attached.streams(streams)
        with names:
            tokens: Tensor = self._module(**inputs).last_hidden_state
        return tokens

    def recorded(self, inputs: Inputs, streams: Sequence[Hashable]) -> tuple[Tensor, BatchRecord]:
        """Return what `run` gives for a frame of each stream, and what became of them."""
        if self._attached is None:
            count = len(streams)
            return self.run(inputs), FrameShares((True,) * count, (1.0,) * count)
        with self._attached.record() as record:
            tokens = self.run(inputs, streams)
        return tokens, record

    def time(self, inputs: Inputs, clock: WallClock) -> tuple[Tensor, float, BatchRecord]:
        """Return what `run` gives for one frame, its seconds, and what became of the frame."""
        if self._attached is None:
            return *timed(lambda: self.run(inputs), clock), FrameShares((True,), (1.0,))
        with self._attached.record() as record:
            tokens, seconds = timed(lambda: self.run(inputs), clock)
        return tokens, seconds, record

    def reset(self) -> None:
        """Forget all streams."""
        if self._attached is not None:
            self._attached.reset()


class FrameComparison(Opened):
    """Runs every frame of one stream through a tower dense, and by several methods.

    All in one process on the same input; the order in which they run alternates, so that every
    phase of a refresh cycle gets both.

    Args:
        model: the tower; its module stays as it is.
        methods: in any number; each runs on a copy that shares the tower's weights.
        layers: whether each layer's output is compared as well, for `fidelity`.

    Raises:
        TypeError: a tower that a method can't run.
    """

    def __init__(
        self, model: VisionModel, methods: Sequence[Method], *, layers: bool = False
    ) -> None:
        super().__init__()
        self._model = model
        self._clock = WallClock(model.device)
        self._cycle = max((method.refresh_interval for method in methods), default=1)
        self._count = 0
        self._watched: list[LayerOutputs] = []
        with ExitStack() as stack:
            self._towers = [stack.enter_context(MethodTower(model, each)) for each in methods]
            if layers:
                specs = [read_tower(model.module), *(each.tower for each in self._towers)]
                self._watched = [stack.enter_context(watch_layers(spec)) for spec in specs]
            self._open = stack.pop_all()
        self._tallies = [FidelityTally() for _ in methods]
        self._ages: list[int | None] = [None for _ in methods]

    @property
    def fidelity(self) -> tuple[Fidelity | None, ...]:
        """How close each method stayed to dense since the last reset; None: no frames were run."""
        return tuple(tally.result() for tally in self._tallies)

    def reset(self) -> None:
        """Begin another stream."""
        for tower in self._towers:
            tower.reset()
        for watched in self._watched:
            watched.take()
        self._tallies = [FidelityTally() for _ in self._towers]
        self._ages = [None for _ in self._towers]
        self._count = 0
        wait_for(self._model.device)

    @torch.inference_mode()
    def warm_up(
        self, inputs: Inputs, see: Callable[[Tensor], object] = lambda features: None
    ) -> None:
        """Run a frame twice in every way, then begin another stream.

        Args:
            inputs: of one frame.
            see: given each method's features, [1, T, C], right after its tower has run.
        """
        for _ in range(2):
            self._dense(inputs)
            for tower in self._towers:
                see(self._model.patches_of(tower.run(inputs)))
        self.reset()

    @torch.inference_mode()
    def step(self, inputs: Inputs) -> ComparedFrame:
        """Run the next frame of the stream.

        Args:
            inputs: of one frame, as `VisionModel.inputs` gives it.
        """
        timings: dict[int, tuple[Tensor, float, BatchRecord]] = {}
        layers: dict[int, tuple[Tensor, ...]] = {}
        # Number 0 is dense.
        order = range(len(self._towers) + 1)
        dense_first = (self._count + self._count // self._cycle) % 2 == 0
        for number in order if dense_first else reversed(order):
            timings[number] = self._time(number, inputs)
            if self._watched:
                layers[number] = self._watched[number].take()
        self._count += 1
        tokens, seconds, _ = timings[0]
        dense = self._model.patches_of(tokens)
        runs = tuple(
            self._compared(place, timings[place + 1], dense, layers)
            for place in range(len(self._towers))
        )
        return ComparedFrame(dense, seconds, runs)

    def _time(self, number: int, inputs: Inputs) -> tuple[Tensor, float, BatchRecord]:
        if number:
            return self._towers[number - 1].time(inputs, self._clock)
        tokens, seconds = timed(lambda: self._dense(inputs), self._clock)
        return tokens, seconds, FrameShares((True,), (1.0,))

    def _dense(self, inputs: Inputs) -> Tensor:
        tokens: Tensor = self._model.module(**inputs).last_hidden_state
        return tokens

    def _compared(
        self,
        place: int,
        timing: tuple[Tensor, float, BatchRecord],
        dense: Tensor,
        layers: Mapping[int, Sequence[Tensor]],
    ) -> FrameRun:
        tokens, seconds, record = timing
        features = self._model.patches_of(tokens)
        whole = record.whole[0]
        before = self._ages[place]
        age = self._ages[place] = 0 if whole else None if before is None else before + 1
        cosine = token_cosines(features[0], dense[0])
        by_layer: tuple[float, ...] = ()
        if layers:
            by_layer = self._by_layer(layers[place + 1], layers[0])
            self._tallies[place].add(age or 0, by_layer, float(cosine.mean()))
        return FrameRun(
            features, seconds, whole, age or 0, record.share[0], record, cosine, by_layer
        )

    def _by_layer(self, own: Sequence[Tensor], dense: Sequence[Tensor]) -> tuple[float, ...]:
        if [each.shape for each in own] != [each.shape for each in dense]:
            # Layers that did not run, or ran on merged tokens.
            return (float("nan"),) * len(dense)
        own, dense = ([self._model.patches_of(each) for each in one] for one in (own, dense))
        return tuple(cosines(own, dense))
