"""One compressed forward of a tower, layer by layer, as the encoder calls them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import Parameter

from stc_stream.cacher.attention import Positions
from stc_stream.cacher.call import LayerCall
from stc_stream.cacher.change import PixelWatch
from stc_stream.cacher.config import CacherConfig
from stc_stream.cacher.graphs import GraphStore
from stc_stream.cacher.layer import (
    Batch,
    Budget,
    Rows,
    Selective,
    index_tensor,
    run_layer,
)
from stc_stream.cacher.record import Recording, joined_records
from stc_stream.cacher.references import FrameKind, finite_frames
from stc_stream.cacher.schedule import Frames, Plan, Streams
from stc_stream.cacher.selfcheck import SelfCheck
from stc_stream.towers import TowerSpec

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Grid = tuple[int, int]


@dataclass(eq=False)
class _Group:
    """Frames of one kind, and where they lie in the batch's tokens."""

    plan: Plan
    batch: Batch
    starts: Sequence[int] | None
    normed: Tensor | None = None
    positions: list[tuple[object, object, Positions]] = field(default_factory=list)

    def take(self, tokens: Tensor) -> Tensor:
        """Return these frames as [F, T, ..], a view where they lie side by side."""
        if self.starts is None:
            return tokens
        size, first, end = self.batch.tokens, self.starts[0], self.starts[-1] + self.batch.tokens
        if end - first == size * len(self.starts):
            frames: Tensor = tokens[first:end].unflatten(0, (len(self.starts), size))
            return frames
        return torch.stack([tokens[start : start + size] for start in self.starts])

    def put(self, tokens: Tensor, frames: Tensor) -> None:
        """Write these frames, [F, T, C], to packed tokens."""
        for start, frame in zip(self.starts or (), frames, strict=True):
            tokens[start : start + self.batch.tokens] = frame


class Forward:
    """A forward of a tower: planned at its first layer, committed when the encoder returns.

    Args:
        tower: the tower.
        config: the Cacher's settings.
        streams: the Cacher's streams.
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
        config: CacherConfig,
        streams: Streams,
        names: Callable[[int], Sequence[Hashable]],
        grids: Sequence[Grid] | None,
        pixels: PixelWatch,
        graphs: GraphStore | None,
        recording: Recording | None,
        check: SelfCheck | None,
    ) -> None:
        self._tower = tower
        self._config = config
        self._streams = streams
        self._names = names
        self._grids = grids
        self._pixels = pixels
        self._graphs = graphs if recording is None else None
        self._recording = recording
        self._check = check
        self._groups: list[_Group] | None = None
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

    def _layer(self, number: int, call: LayerCall) -> Tensor:
        x = call.hidden
        if self._groups is None:
            # Patch embeddings come transposed, which every layer after would pay for.
            x = x.contiguous()
            self._groups = self._begin(x)
            self._shape = x.shape
            self._replayed = self._replay(x, call)
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
            output = self._run(number, x, call)
        if self._check is not None and self._check.wants(number):
            self._check(number, call, x, output, self._whole)
        self._depth = max(self._depth, number + 1)
        self._output, self._writes = output, _writes(output)
        return output

    @property
    def computed(self) -> int:
        """Tokens computed, on average over the layers that ran."""
        total = sum(group.batch.computed for group in self._groups or ())
        return round(total / max(1, self._depth))

    @property
    def tokens(self) -> int:
        """Tokens of all frames."""
        return sum(group.batch.rows * group.batch.tokens for group in self._groups or ())

    def commit(self) -> None:
        """Count the frames, once the encoder has returned."""
        groups = self._groups or []
        self._streams.commit([group.plan for group in groups], self._depth, self._finite())
        if self._recording is not None:
            self._recording.layers = joined_records(
                [(group.plan.rows, group.batch.records or []) for group in groups]
            )

    def roll_back(self) -> None:
        """Take back the frames, when the encoder has failed."""
        self._streams.roll_back()

    def _begin(self, x: Tensor) -> list[_Group]:
        """Decide what is done with each frame and give each new reference its place."""
        if x.dtype not in _DTYPES:
            raise TypeError(
                f"the tower must compute in float32, float16 or bfloat16 while a Cacher is "
                f"attached, but computes in {str(x.dtype).removeprefix('torch.')}"
            )
        kinds, starts = self._kinds(x)
        pixels = None
        if self._pixels.keeps:
            prefix = self._tower.prefix_tokens
            pixels = self._pixels.take([kind.tokens - prefix for kind in kinds])
        frames = Frames(
            kinds,
            partial(_finite_rows, x, kinds, starts),
            pixels,
            self._pixels.shares if self._pixels.keeps else None,
        )
        plans = self._streams.plan(self._names(len(kinds)), frames)
        return [
            _Group(
                plan,
                self._batch(plan),
                None if starts is None else [starts[row] for row in plan.rows],
            )
            for plan in plans
        ]

    def _kinds(self, x: Tensor) -> tuple[list[FrameKind], list[int] | None]:
        """Return the kind of each frame, and where each starts in packed tokens."""
        device = x.device
        if x.is_meta:
            raise ValueError(
                "the tower is on the meta device, where nothing is computed: load its weights, or "
                "detach the Cacher"
            )
        projected = x.dtype
        if torch.is_autocast_enabled(device.type):
            projected = torch.get_autocast_dtype(device.type)
        dimensions = 3 if self._grids is None else 2
        if x.dim() != dimensions:
            raise ValueError(
                f"the encoder's input must have shape "
                f"{'[frames, tokens, channels]' if dimensions == 3 else '[tokens, channels]'}, "
                f"but has shape {list(x.shape)}"
            )
        rest = (x.dtype, projected, device)
        if self._grids is None:
            grid = self._pixels.grid(x.shape[0], x.shape[1] - self._tower.prefix_tokens)
            return [FrameKind(x.shape[1], x.shape[2], grid, *rest)] * x.shape[0], None
        kinds = [FrameKind(h * w, x.shape[1], (h, w), *rest) for h, w in self._grids]
        starts = [0]
        for kind in kinds:
            starts.append(starts[-1] + kind.tokens)
        if starts[-1] != x.shape[0]:
            raise ValueError(
                f"grid_thw must name all tokens: it comes to {starts[-1]}, but there are "
                f"{x.shape[0]}"
            )
        return kinds, starts[:-1]

    def _batch(self, plan: Plan) -> Batch:
        device = plan.kind.device
        return Batch(
            rows=len(plan.rows),
            tokens=plan.kind.tokens,
            budget=self._budget(plan.kind),
            refresh=Rows(plan.refresh, device) if plan.refresh else None,
            selective=tuple(
                Selective(Rows(rows, device), stored, index_tensor(sources, device))
                for rows, stored, sources in (
                    (plan.stored, True, plan.slots),
                    (plan.joined, False, plan.sources),
                )
                if rows
            ),
            pool=plan.pool,
            places=_places(plan.written, device),
            destinations=index_tensor(plan.destinations, device) if plan.written else None,
            records=None if self._recording is None else [],
        )

    def _budget(self, kind: FrameKind) -> Budget:
        prefix, config = self._tower.prefix_tokens, self._config
        patches = kind.tokens - prefix
        return Budget(
            prefix=prefix,
            most=config.updated_tokens(patches),
            metric=config.metric,
            threshold=config.threshold,
            step=config.budget_step(patches),
            selection=config.selection,
        )

    def _take_changed(self) -> None:
        """Run on tokens that something between the layers has changed."""
        self._replayed = None
        for group in self._groups or ():
            group.normed = None
        if self._graphs is not None:
            self._graphs.refuse("something between the tower's layers changes their tokens")

    def _whole(self, tokens: Tensor) -> list[Tensor]:
        """Return the frames of a batch that are computed whole, [F, T, C] of each kind."""
        return [
            Rows(group.plan.refresh, tokens.device).take(group.take(tokens))
            for group in self._groups or ()
            if group.plan.refresh
        ]

    def _check_order(self, number: int) -> None:
        if number in self._ran:
            raise RuntimeError(
                f"layer {number} of the tower was called twice in one forward, which a Cacher "
                "can't tell apart: where layers are repeated, give each place a layer of its own"
            )
        self._ran.add(number)
        for group in self._groups or ():
            if group.plan.depth is not None and number >= group.plan.depth:
                raise RuntimeError(
                    f"layer {number} of the tower was not run on the reference frame, so it has "
                    "nothing to reuse: the layers an encoder runs must be the same on every frame"
                )

    def _run(self, number: int, x: Tensor, call: LayerCall) -> Tensor:
        groups = self._groups or []
        outputs = []
        for group in groups:
            output, group.normed = run_layer(
                self._tower.layers[number],
                number,
                group.batch,
                group.take(x),
                self._positions(group, call),
                group.normed,
                self._next_norm(number),
            )
            outputs.append(output)
        if not groups:
            return x
        if groups[0].starts is None:
            return outputs[0]
        if len(groups) == 1:
            return outputs[0].flatten(0, 1)
        packed = torch.empty_like(x)
        for group, output in zip(groups, outputs, strict=True):
            group.put(packed, output)
        return packed

    def _next_norm(self, number: int) -> torch.nn.Module | None:
        layers = self._tower.layers
        return layers[number + 1].norm1 if number + 1 < len(layers) else None

    def _positions(self, group: _Group, call: LayerCall) -> Positions:
        """Return where a group's tokens are, worked out once for what layers are called with."""
        for rotary, segments, positions in group.positions:
            if rotary is call.rotary and segments is call.segments:
                return positions
        positions = self._read_positions(group, call)
        # Held, so that nothing else can come to have their identity.
        group.positions.append((call.rotary, call.segments, positions))
        return positions

    def _read_positions(self, group: _Group, call: LayerCall) -> Positions:
        tokens, start = group.batch.tokens, 0 if group.starts is None else group.starts[0]
        cos, sin = (None, None)
        if call.rotary is not None:
            cos, sin = (
                _with_prefix(table, start, tokens, self._tower.prefix_tokens, fill)
                for table, fill in zip(call.rotary, (1.0, 0.0), strict=True)
            )
        windows = None
        if call.segments is not None:
            windows = _windows(call.segments.tolist(), start, tokens)
        elif group.starts is not None:
            raise ValueError(
                "the layers of a tower of packed frames must be called with cu_seqlens, "
                "but its encoder passes none"
            )
        return Positions(tokens, cos, sin, windows)

    def _replay(self, x: Tensor, call: LayerCall) -> list[Tensor] | None:
        """Run all layers from a graph; None: they run one by one."""
        graphs, groups = self._graphs, self._groups
        if graphs is None or not groups:
            return None
        reason = self._not_capturable(groups)
        if reason is not None:
            graphs.refuse(reason)
            return None
        group = groups[0]
        plan, positions = group.plan, self._positions(group, call)
        kept = [plan.refresh[place] for place in plan.written]
        whole = kept + [row for row in plan.refresh if row not in set(kept)]
        sources = [whole.index(plan.refresh[place]) for place in plan.sources]
        order = [*whole, *plan.stored, *plan.joined]
        sizes = (len(kept), len(whole), len(plan.stored), len(plan.joined))
        device = plan.kind.device
        index = index_tensor([*plan.destinations, *plan.slots, *sources, *order], device)
        destinations, slots, places, rows = index.split([sizes[0], sizes[2], sizes[3], len(order)])
        tables = () if positions.cos is None else (positions.cos, positions.sin)
        plan.pool.allocate()
        weights = tuple(_place(each) for layer in self._tower.layers for each in layer.weights())
        # Under new hooks a batch runs eagerly once, which shows whether they change the tokens.
        hooks = tuple(
            (*layer.module._forward_pre_hooks, *layer.module._forward_hooks)
            for layer in self._tower.layers
        )
        key = (plan.kind, plan.pool.generation, sizes, weights, hooks)

        def work(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
            return self._all_layers(plan, sizes, inputs)

        frames = group.take(x)
        given = (frames.index_select(0, rows), destinations, slots, places, *tables)
        # Rows may be held against the very references that the batch replaces.
        rehearsal = plan.pool.kept_as_is(plan.destinations)
        outputs = graphs.run(key, given, work, rehearsal, self._hooked)
        if outputs is None:
            return None
        group.batch.computed = len(self._tower.layers) * (
            sizes[1] * plan.kind.tokens
            + (sizes[2] + sizes[3]) * (group.batch.budget.prefix + group.batch.budget.most)
        )
        back = torch.empty_like(rows).index_copy_(0, rows, torch.arange(len(order), device=device))
        in_order = order == sorted(order)
        outputs = [output if in_order else output.index_select(-3, back) for output in outputs]
        layers = [*outputs[0], outputs[1]] if len(outputs) == 2 else list(outputs)
        return [layer if group.starts is None else layer.flatten(0, 1) for layer in layers]

    def _all_layers(
        self, plan: Plan, sizes: tuple[int, int, int, int], inputs: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Run every layer over rows in the order: whole, kept ones first, stored, joined.

        Returns the outputs of all layers but the last, stacked, and the last's.
        """
        frames, destinations, slots, places, *tables = inputs
        kept, whole, stored, joined = sizes
        device = plan.kind.device
        groups = (
            (range(whole, whole + stored), True, slots),
            (range(whole + stored, whole + stored + joined), False, places),
        )
        batch = Batch(
            rows=frames.shape[0],
            tokens=plan.kind.tokens,
            budget=self._budget(plan.kind),
            refresh=Rows(range(whole), device) if whole else None,
            selective=tuple(
                Selective(Rows(rows, device), is_stored, sources)
                for rows, is_stored, sources in groups
                if rows
            ),
            pool=plan.pool,
            destinations=destinations if kept else None,
        )
        cos, sin = tables or (None, None)
        positions = Positions(plan.kind.tokens, cos, sin)
        x, normed, outputs = frames, None, []
        for number, layer in enumerate(self._tower.layers):
            x, normed = run_layer(
                layer,
                number,
                batch,
                x,
                positions,
                normed,
                self._next_norm(number),
            )
            outputs.append(x)
        return outputs if len(outputs) == 1 else (torch.stack(outputs[:-1]), outputs[-1])

    def _not_capturable(self, groups: Sequence[_Group]) -> str | None:
        device = groups[0].plan.kind.device
        if len(groups) > 1:
            return "a batch had frames of several sizes"
        if torch.is_autocast_enabled(device.type):
            return "autocast is on"
        if self._tower.windowed:
            return f"layers of a {self._tower.family} tower have windows of attention"
        return None

    def _hooked(self) -> str | None:
        """Say which hook would not be called when a graph is replayed."""
        for number, layer in enumerate(self._tower.layers):
            # A graph leaves out no more hooks of these than running eagerly does.
            uncalled = {id(module) for _, module in layer.unread()}
            for name, module in layer.module.named_modules():
                hooked = module._forward_hooks or module._forward_pre_hooks
                if hooked and id(module) not in uncalled:
                    return f"{name} of layer {number} has forward hooks, which a graph leaves out"
        return None

    def _finite(self) -> list[Tensor | None]:
        """Tell of each reference that is kept whether its frame came out finite; wait for none."""
        output = self._output
        flags: list[Tensor | None] = []
        for group in self._groups or ():
            if not group.plan.written or output is None:
                flags.append(None)
                continue
            rows = [group.plan.refresh[place] for place in group.plan.written]
            frames = Rows(rows, output.device).take(group.take(output))
            flags.append(finite_frames(frames))
        return flags


def _place(weight: Tensor) -> int:
    """Return what a graph finds a weight by; a tensor of another class has no place of its own."""
    return weight.data_ptr() if type(weight) in (Tensor, Parameter) else id(weight)


def _writes(tokens: Tensor) -> int:
    """Return how often tokens were written in place; inference tensors do not tell."""
    return 0 if tokens.is_inference() else tokens._version


def _finite_rows(x: Tensor, kinds: Sequence[FrameKind], starts: Sequence[int] | None) -> Tensor:
    """Tell of each frame of a batch whether its tokens are finite: bool [F]."""
    if starts is None:
        return finite_frames(x)
    frames = [
        x[start : start + kind.tokens][None] for start, kind in zip(starts, kinds, strict=True)
    ]
    return torch.cat([finite_frames(frame) for frame in frames])


def _windows(segments: Sequence[int], start: int, tokens: int) -> tuple[int, ...]:
    """Return where windows end in the frame that starts at `start`."""
    ends = {end - start for end in segments}
    if not {0, tokens} <= ends:
        raise ValueError(
            "cu_seqlens of the tower's layers must end a segment at the end of each frame, but "
            "does not: layers that attend to several frames at once have no reference to reuse"
        )
    return tuple(sorted(end for end in ends if 0 < end <= tokens))


def _places(written: Sequence[int], device: torch.device) -> Tensor | None:
    # The first so many need no copy, and no index that a graph would have to hold.
    if list(written) == list(range(len(written))):
        return None
    return index_tensor(written, device)


def _with_prefix(table: Tensor, start: int, tokens: int, prefix: int, fill: float) -> Tensor:
    """Return one frame's rows of a rotary table, [T, D]; where it has no prefix, one not turned."""
    if table.dim() == 3:
        table = table[0]
    if table.shape[0] == tokens:
        return table
    patches = table[start : start + tokens - prefix]
    if prefix == 0:
        return patches
    return torch.cat([patches.new_full((prefix, patches.shape[1]), fill), patches])
