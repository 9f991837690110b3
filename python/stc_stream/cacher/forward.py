"""One compressed forward of a tower, layer by layer, as the encoder calls them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from stc_stream.cacher.call import FramePlace, LayerCall
from stc_stream.cacher.change import FrameDiff
from stc_stream.cacher.frames import BatchFrames
from stc_stream.cacher.graphs import GraphStore
from stc_stream.cacher.layer import run_layer
from stc_stream.cacher.packing import Grid, Packing
from stc_stream.cacher.plan import BatchPlan, Rows
from stc_stream.cacher.record import LayerRecord, Recording, joined_records
from stc_stream.cacher.references import finite_frames
from stc_stream.cacher.replay import PlanGraphs
from stc_stream.cacher.schedule import RefreshScheduler
from stc_stream.cacher.selfcheck import SelfCheck
from stc_stream.towers import TowerSpec

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(eq=False)
class _Progress:
    """How far the frames of a plan have come.

    Attributes:
        plan: the plan.
        finite: whether each saved frame's tokens were finite before the layers, bool [saved];
            None: none is saved.
        normed: LN1 of the tokens for the next layer, where the last layer has made it.
        computed: tokens computed so far, over all layers that ran.
        records: what each layer did, where something records.
    """

    plan: BatchPlan
    finite: Tensor | None
    normed: Tensor | None = None
    computed: int = 0
    records: list[LayerRecord] = field(default_factory=list)


class Forward:
    """A forward of a tower: planned at its first layer, committed when the encoder returns.

    Args:
        tower: the tower.
        scheduler: decides what becomes of each frame.
        names: gives the stream of each frame, told how many there are.
        grids: rows and columns of each frame, where frames are packed; None: they are not.
        pixels: remembers the frames' size, and their pixels where changes are watched.
        graphs: captured batches; None: everything runs eagerly.
        recording: takes what each layer did; None: nothing does.
        check: holds each layer to its own forward, once; None: nothing does.
    """

    def __init__(
        self,
        tower: TowerSpec,
        scheduler: RefreshScheduler,
        names: Callable[[int], Sequence[Hashable]],
        grids: Sequence[Grid] | None,
        pixels: FrameDiff,
        graphs: GraphStore | None,
        recording: Recording | None,
        check: SelfCheck | None,
    ) -> None:
        self._tower = tower
        self._scheduler = scheduler
        self._names = names
        self._grids = grids
        self._pixels = pixels
        self._graphs = None
        if graphs is not None and recording is None:
            self._graphs = PlanGraphs(tower, graphs)
        self._recording = recording
        self._check = check
        self._packing: Packing | None = None
        self._progress: list[_Progress] = []
        self._shape = torch.Size()
        self._depth = 0
        self._ran: set[int] = set()
        self._output: Tensor | None = None
        self._writes = 0
        self._replayed: list[Tensor] | None = None

    def layer(self, number: int, args: tuple[object, ...], kwargs: dict[str, object]) -> Tensor:
        """Run a layer, as the encoder calls it."""
        # Tensors made in inference mode do not count what is written to them, by hooks say.
        with torch.inference_mode(False), torch.no_grad():
            takes = self._tower.layers[number].takes
            return self._layer(number, LayerCall.read(number, takes, args, kwargs))

    @property
    def computed(self) -> int:
        """Tokens computed, on average over the layers that ran."""
        total = sum(each.computed for each in self._progress)
        return round(total / max(1, self._depth))

    @property
    def tokens(self) -> int:
        """Tokens of all frames."""
        return sum(each.plan.tokens for each in self._progress)

    def commit(self) -> None:
        """Count the frames, once the encoder has returned."""
        finite = [self._finite(each) for each in self._progress]
        self._scheduler.commit([each.plan for each in self._progress], self._depth, finite)
        if self._recording is not None:
            self._recording.layers = joined_records(
                [(each.plan.frames, each.records) for each in self._progress]
            )

    def roll_back(self) -> None:
        """Take back the frames, when the encoder has failed."""
        self._scheduler.roll_back()

    def _layer(self, number: int, call: LayerCall) -> Tensor:
        x = call.hidden
        if self._packing is None:
            # Patch embeddings come transposed, which every layer after would pay for.
            x = x.contiguous()
            self._shape = x.shape
            self._packing = self._begin(x)
            self._replayed = self._replay(self._packing, x, call)
        elif x.shape != self._shape:
            raise ValueError(
                f"layer {number} of the tower was called with tokens of shape {list(x.shape)}, but "
                f"the first one with {list(self._shape)}: tokens that are dropped, merged or added "
                "between layers have no reference. Remove what does so, or detach the Cacher"
            )
        elif x is not self._output or _writes(x) != self._writes:
            self._take_changed()
        self._check_order(number)
        if self._replayed is not None:
            output = self._replayed[number]
        else:
            output = self._run(self._packing, number, x, call)
        if self._check is not None and self._check.wants(number):
            self._check(number, call, x, output, self._refreshed())
        self._depth = max(self._depth, number + 1)
        self._output, self._writes = output, _writes(output)
        return output

    def _begin(self, x: Tensor) -> Packing:
        """Plan what becomes of each frame."""
        if x.dtype not in _DTYPES:
            raise TypeError(
                f"the tower must compute in float32, float16 or bfloat16 while a Cacher is "
                f"attached, but computes in {str(x.dtype).removeprefix('torch.')}"
            )
        packing = Packing.read(x, self._tower.prefix_tokens, self._grids, self._pixels.grid)
        watches = self._pixels.keeps
        frames = BatchFrames(
            packing.kinds,
            partial(packing.finite, x),
            self._pixels.take(packing.patches) if watches else None,
            self._pixels.shares if watches else None,
        )
        for plan in self._scheduler.plan(self._names(len(packing.kinds)), frames):
            saved = plan.saved_frames
            finite = Rows(saved, x.device).take(frames.flags) if saved else None
            self._progress.append(_Progress(plan, finite))
        return packing

    def _replay(self, packing: Packing, x: Tensor, call: LayerCall) -> list[Tensor] | None:
        """Run all layers from a graph; None: they run one by one."""
        if self._graphs is None or not self._progress:
            return None
        if len(self._progress) > 1:
            self._graphs.refuse("a batch had frames of several sizes")
            return None
        plan = self._progress[0].plan
        positions = packing.positions(plan.frames, call)
        outputs = self._graphs.run(plan, packing.take(plan.frames, x), positions)
        if outputs is None:
            return None
        self._progress[0].computed = len(outputs) * plan.computed
        return [packing.join([(plan.frames, output)]) for output in outputs]

    def _run(self, packing: Packing, number: int, x: Tensor, call: LayerCall) -> Tensor:
        outputs = []
        for each in self._progress:
            frames = each.plan.frames
            output = run_layer(
                self._tower.layers[number],
                number,
                each.plan,
                packing.take(frames, x),
                packing.positions(frames, call),
                each.normed,
                self._tower.next_norm(number),
                None if self._recording is None else each.records,
            )
            each.normed = output.normed
            each.computed += output.computed
            outputs.append((frames, output.tokens))
        return packing.join(outputs) if outputs else x

    def _take_changed(self) -> None:
        """Run on tokens that something between the layers has changed."""
        self._replayed = None
        for each in self._progress:
            each.normed = None
        if self._graphs is not None:
            self._graphs.refuse("something between the tower's layers changes their tokens")

    def _check_order(self, number: int) -> None:
        if number in self._ran:
            raise RuntimeError(
                f"layer {number} of the tower was called twice in one forward, which a Cacher "
                "can't tell apart: where layers are repeated, give each place a layer of its own"
            )
        self._ran.add(number)
        for each in self._progress:
            if each.plan.depth is not None and number >= each.plan.depth:
                raise RuntimeError(
                    f"layer {number} of the tower was not run on the reference frame, so it has "
                    "nothing to reuse: the layers an encoder runs must be the same on every frame"
                )

    def _refreshed(self) -> list[FramePlace]:
        """Return where the frames of the batch are that are computed densely."""
        assert self._packing is not None
        return [
            self._packing.place(each.plan.frames[row])
            for each in self._progress
            if each.plan.refresh is not None
            for row in each.plan.refresh
        ]

    def _finite(self, progress: _Progress) -> Tensor | None:
        """Tell of each saved frame whether it was finite and came out so; wait for nothing."""
        plan, output = progress.plan, self._output
        if plan.saved is None or plan.refresh is None or output is None:
            return progress.finite
        rows = plan.refresh.some(plan.saved.places.places)
        came_out = finite_frames(rows.take(self._take(plan, output)))
        return came_out if progress.finite is None else came_out & progress.finite

    def _take(self, plan: BatchPlan, tokens: Tensor) -> Tensor:
        assert self._packing is not None
        return self._packing.take(plan.frames, tokens)


def _writes(tokens: Tensor) -> int:
    """Return how often tokens were written in place; inference tensors do not tell."""
    return 0 if tokens.is_inference() else tokens._version
