"""One compressed forward of a tower, layer by layer, as the encoder calls them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from stc_stream.cacher.call import FramePlace, LayerCall
from stc_stream.cacher.change import FrameDiff
from stc_stream.cacher.frames import BatchFrames
from stc_stream.cacher.layer import run_layer
from stc_stream.cacher.packing import Grid, Packing
from stc_stream.cacher.plan import BatchPlan, Rows
from stc_stream.cacher.record import LayerRecord, Recording, joined_records
from stc_stream.cacher.references import finite_frames
from stc_stream.cacher.replay import LayerReplay, PlanGraphs, writes
from stc_stream.cacher.schedule import RefreshScheduler
from stc_stream.cacher.selfcheck import SelfCheck
from stc_stream.towers import TowerSpec

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(eq=False)
class _Progress:
    """How far the frames of a plan have come.

    Attributes:
        plan: the plan.
        finite: whether each saved frame's tokens were finite before the layers, and after them
            where they were replayed, bool [saved]; None: none is saved.
        normed: LN1 of the tokens for the next layer, where the last layer has made it.
        computed: tokens computed so far, over all layers that ran.
        records: what each layer did, where something records.
    """

    plan: BatchPlan
    finite: Tensor | None = None
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
        graphs: PlanGraphs | None,
        recording: Recording | None,
        check: SelfCheck | None,
    ) -> None:
        self._tower = tower
        self._scheduler = scheduler
        self._names = names
        self._grids = grids
        self._pixels = pixels
        self._graphs = graphs if recording is None else None
        self._recording = recording
        self._check = check
        self._packing: Packing | None = None
        self._frames: BatchFrames | None = None
        self._progress: list[_Progress] = []
        self._shape = torch.Size()
        self._depth = 0
        self._ran: set[int] = set()
        self._output: Tensor | None = None
        self._writes = 0
        self._replay: LayerReplay | None = None
        self._inner: list[weakref.ref[torch.UntypedStorage]] = []

    def layer(self, number: int, args: tuple[object, ...], kwargs: dict[str, object]) -> Tensor:
        """Run a layer, as the encoder calls it."""
        replay = self._replay
        if replay is not None:
            output = replay.again(number, args, kwargs)
            if output is not None:
                return output
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
        """Count the frames, once the encoder has returned; RuntimeError: see `check_takers`."""
        if self._replay is not None:
            self._catch_up(self._replay)
        self._find_takers()
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
            self._replay = self._replayed(self._packing, number, x, call)
        elif x.shape != self._shape:
            raise ValueError(
                f"layer {number} of the tower was called with tokens of shape {list(x.shape)}, but "
                f"the first one with {list(self._shape)}: tokens that are dropped, merged or added "
                "between layers have no reference. Remove what does so, or detach the Cacher"
            )
        else:
            if self._replay is not None:
                self._catch_up(self._replay)
            skipped = number > self._depth and self._replay is not None
            if skipped or x is not self._output or writes(x) != self._writes:
                self._take_changed()
            if number != self._depth:
                self._forget_norms()
        self._check_order(number)
        if self._replay is not None:
            output = self._replay.step()
        else:
            output = self._run(self._packing, number, x, call)
            if self._graphs is not None and number + 1 < len(self._tower.layers):
                self._inner.append(weakref.ref(output.untyped_storage()))
        if self._check is not None and self._check.wants(number):
            self._check(number, call, x, output, self._refreshed())
        self._depth = max(self._depth, number + 1)
        self._output, self._writes = output, writes(output)
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
        self._frames = frames
        plans = self._scheduler.plan(self._names(len(packing.kinds)), frames)
        self._progress = [_Progress(plan) for plan in plans]
        return packing

    def _replayed(
        self, packing: Packing, number: int, x: Tensor, call: LayerCall
    ) -> LayerReplay | None:
        """Run all layers from a graph; None: they run one by one, after what is asked of x."""
        if self._graphs is not None and self._progress and number == 0:
            layers = range(len(self._tower.layers))
            compared = self._check is not None and any(map(self._check.wants, layers))
            plans = [each.plan for each in self._progress]
            found = self._graphs.batch(plans, packing, x, call, whole=compared)
            if found is not None:
                self._progress[0].finite = found.finite
                return found
        for each in self._progress:
            saved = each.plan.saved_frames
            if saved and self._frames is not None:
                each.finite = Rows(saved, x.device).take(self._frames.flags)
        return None

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

    def _catch_up(self, replay: LayerReplay) -> None:
        """Note the layers that have returned what a graph gave."""
        self._ran.update(range(self._depth, replay.number))
        self._depth = replay.number
        self._output, self._writes = replay.output, replay.writes
        for each in self._progress:
            each.computed = self._depth * each.plan.computed

    def _take_changed(self) -> None:
        """Run on tokens that something between the layers has changed."""
        if self._graphs is not None:
            self._graphs.refuse("something between the tower's layers changes their tokens")
        if self._replay is not None and not self._replay.whole:
            raise RuntimeError(
                "something between the tower's layers changed their tokens in a replayed batch, "
                "but not when such a batch was run before: it can't be run on from there. Later "
                "batches run eagerly; to have none captured, leave cuda_graph False"
            )
        self._replay = None
        self._forget_norms()

    def _forget_norms(self) -> None:
        """Leave the next layer's norm to itself: it was made for another layer, or other tokens."""
        for each in self._progress:
            each.normed = None

    def _find_takers(self) -> None:
        """Learn whether somebody keeps what inner layers give, which a graph then has to give."""
        if self._graphs is None or not self._progress:
            return
        if self._replay is not None:
            self._graphs.check_takers(self._replay)
            return
        kept = any(storage() is not None for storage in self._inner)
        if kept or self._depth < len(self._tower.layers):
            self._graphs.note_taker()
        if len(self._ran) < self._depth:
            self._graphs.refuse("the tower's encoder leaves layers out")

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
        if self._replay is not None:
            return progress.finite
        if plan.saved is None or plan.refresh is None or output is None:
            return progress.finite
        assert self._packing is not None
        rows = plan.refresh.some(plan.saved.places.places)
        came_out = finite_frames(rows.take(self._packing.take(plan.frames, output)))
        return came_out if progress.finite is None else came_out & progress.finite
