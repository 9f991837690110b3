"""A whole batch run from one graph: its plan with rows in a fixed order, its indices as inputs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stc_stream.cacher.attention import Positions
from stc_stream.cacher.call import LayerCall
from stc_stream.cacher.graphs import GraphStore
from stc_stream.cacher.layer import run_layer
from stc_stream.cacher.packing import Packing
from stc_stream.cacher.plan import BatchPlan, GivenIndex, Rows, Saved, Selective
from stc_stream.cacher.references import finite_frames
from stc_stream.cacher.versions import TowerVersions
from stc_stream.cacher.waits import index_tensor
from stc_stream.towers import TowerSpec


@dataclass(frozen=True, eq=False)
class Replayed:
    """What a replayed batch gives.

    Attributes:
        outputs: what each layer returns, [F, T, C]: its own output, or, of inner layers whose
            outputs nobody takes, `nothing`.
        nothing: NaN in the shape of an output; None: each layer returns its own.
        finite: of each saved frame, whether it was finite and came out so, bool [saved]; the next
            replay writes over it. None: none is saved.
    """

    outputs: Sequence[Tensor]
    nothing: Tensor | None
    finite: Tensor | None


class LayerReplay:
    """The layers of a replayed batch, called one after the other with what the last one gave.

    Args:
        found: what the batch gave.
        joined: puts frames back where they lie in the tokens that layers are called with.
        call: of the first layer.

    Attributes:
        number: the layer that is called next.
        output: what the last one returned; None: none has been called.
        writes: how often that had been written in place.
        whole: whether each layer returns its own output.
        finite: as in `Replayed`.
    """

    def __init__(
        self, found: Replayed, joined: Callable[[Tensor], Tensor], call: LayerCall
    ) -> None:
        self.number = 0
        self.output: Tensor | None = None
        self.writes = 0
        self.whole = found.nothing is None
        self.finite = found.finite
        self._nothing = None if found.nothing is None else joined(found.nothing)
        if self._nothing is None:
            self._outputs = [joined(output) for output in found.outputs]
        else:
            depth = len(found.outputs)
            self._outputs = [self._nothing] * (depth - 1) + [joined(found.outputs[-1])]
        self._call = call
        # The object itself stands for the tokens, which are others at each layer.
        self._args = call.args if call.name is not None else (self, *call.args[1:])
        self._held = 0

    def again(
        self, number: int, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Tensor | None:
        """Return what a layer gives that is called next, as the first was, on untouched tokens.

        None: it is called otherwise, so that somebody has to look at how.
        """
        output, call = self.output, self._call
        if number != self.number or len(args) != len(call.args) or len(kwargs) != len(call.kwargs):
            return None
        # Compared by what they are: values would be compared on the device.
        for name, value in kwargs.items():
            if value is not (output if name == call.name else call.kwargs.get(name, self)):
                return None
        for value, before in zip(args, self._args, strict=True):
            if value is not (output if before is self else before):
                return None
        if self.whole and (output is None or writes(output) != self.writes):
            return None
        return self.step()

    def step(self) -> Tensor:
        """Return what the next layer gives."""
        number = self.number
        if number == 0:
            self._held = self._references()
        self.number = number + 1
        output = self._outputs[number]
        if output is not self.output:
            self.output, self.writes = output, writes(output)
        return output

    @property
    def nothing_taken(self) -> bool:
        """Whether somebody took what an inner layer gave, which was not its output."""
        stopped = self.number < len(self._outputs)
        return not self.whole and (stopped or self._references() > self._held)

    def _references(self) -> int:
        return sys.getrefcount(self._nothing)


class PlanGraphs:
    """Runs all layers of a tower from graphs, one for all plans of the same shape.

    Args:
        tower: the tower.
        store: holds the graphs.
        versions: tell when graphs of before would read what is no longer there.
        way: how the tower is called, which may decide who takes what its layers give.
    """

    def __init__(
        self, tower: TowerSpec, store: GraphStore, versions: TowerVersions, way: Hashable
    ) -> None:
        self._tower = tower
        self._store = store
        self._versions = versions
        self._way = way

    def refuse(self, reason: str) -> None:
        """Run everything eagerly from now on, and warn of it once."""
        self._store.refuse(reason)

    def note_taker(self) -> None:
        """Remember that somebody takes what inner layers give in a tower called in this way."""
        self._versions.note_taker(self._way)

    def check_takers(self, replay: LayerReplay) -> None:
        """Refuse what was taken from a replayed batch without having been computed.

        Raises:
            RuntimeError: somebody took what an inner layer gave, and is known from now on.
        """
        if replay.nothing_taken:
            self.note_taker()
            raise RuntimeError(
                "what inner layers of the tower gave was taken from a replayed batch, but not when "
                "such a batch was run before, so it was not computed. Call the tower again: from "
                "now on it is; or ask with output_hidden_states, or with a hook on the layer"
            )

    def batch(
        self,
        plans: Sequence[BatchPlan],
        packing: Packing,
        x: Tensor,
        call: LayerCall,
        whole: bool,
    ) -> LayerReplay | None:
        """Run all layers of a batch; None: run them eagerly.

        Args:
            plans: of its frames, one at least.
            packing: how they lie in the tokens.
            x: the first layer's input.
            call: of the first layer.
            whole: whether each layer's own output is wanted; it is as well where somebody is known
                to take what inner layers give.
        """
        if len(plans) > 1:
            self.refuse("a batch had frames of several sizes")
            return None
        plan = plans[0]
        if plan.depth is not None and plan.depth < len(self._tower.layers):
            return None
        frames, positions = packing.take(plan.frames, x), packing.positions(plan.frames, call)
        found = self._run(plan, frames, positions, whole)
        if found is None:
            return None
        return LayerReplay(found, lambda output: packing.join([(plan.frames, output)]), call)

    def _run(
        self, plan: BatchPlan, frames: Tensor, positions: Positions, whole: bool
    ) -> Replayed | None:
        """Run a plan's frames, [F, T, C]; None: run them eagerly."""
        reason = self._not_capturable(plan)
        if reason is not None:
            self.refuse(reason)
            return None
        whole = whole or self._versions.takes_inner(self._way)
        layout = _Layout(plan)
        tables = (positions.cos, positions.sin)
        inputs = _Inputs(frames, layout, [table for table in tables if table is not None])
        plan.pool.allocate()
        key = (
            plan.kind,
            plan.pool.generation,
            (layout.refreshed, *layout.lengths),
            # Under new hooks a batch runs eagerly once, which shows whether they change the tokens.
            self._versions.current(),
            self._way,
            whole,
        )

        def work(held: Sequence[Tensor]) -> Sequence[Tensor]:
            return self._all_layers(layout, held, whole)

        outputs = self._store.run(
            key,
            inputs,
            work,
            # Rows may be held against the very references that the batch replaces.
            lambda: plan.pool.kept_as_is(layout.entries),
            self._hooked,
        )
        return None if outputs is None else self._replayed(layout, inputs, outputs, whole)

    def _replayed(
        self, layout: _Layout, inputs: _Inputs, outputs: tuple[Tensor, ...], whole: bool
    ) -> Replayed:
        depth, back = len(self._tower.layers), inputs.back
        finite = outputs[-1] if layout.entries else None
        if whole:
            stacked = torch.stack(outputs[:depth])
            own = stacked if back is None else stacked.index_select(1, back)
            return Replayed(own.unbind(), None, finite)
        last, nothing = outputs[0], self._versions.nothing_like(outputs[0])
        own = last.clone() if back is None else last.index_select(0, back)
        return Replayed([nothing] * (depth - 1) + [own], nothing, finite)

    def _all_layers(self, layout: _Layout, held: Sequence[Tensor], whole: bool) -> Sequence[Tensor]:
        """Run every layer over rows in the layout's order.

        Returns what `_replayed` takes apart: the outputs of all layers, or the last one's; and
        whether saved frames are finite, where there are some.
        """
        frames, index, *tables = held
        plan = layout.plan(*index.split(layout.lengths))
        cos, sin = tables or (None, None)
        positions = Positions(plan.kind.tokens, cos, sin)
        x, normed, outputs = frames, None, []
        for number, layer in enumerate(self._tower.layers):
            next_norm = self._tower.next_norm(number)
            output = run_layer(layer, number, plan, x, positions, normed, next_norm)
            x, normed = output.tokens, output.normed
            if whole:
                outputs.append(x)
        if not whole:
            outputs.append(x)
        if layout.entries:
            saved = slice(len(layout.entries))
            outputs.append(finite_frames(frames[saved]) & finite_frames(x[saved]))
        return outputs

    def _not_capturable(self, plan: BatchPlan) -> str | None:
        if torch.is_autocast_enabled(plan.kind.device.type):
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


def writes(tokens: Tensor) -> int:
    """Return how often tokens were written in place; inference tensors do not tell."""
    return 0 if tokens.is_inference() else tokens._version


class _Layout:
    """A plan's rows in an order that depends on how many there are of each sort alone.

    Refresh rows that are saved come first, then the other refresh rows, the rows held against the
    pool, and those held against this batch.

    Attributes:
        order: the rows.
        refreshed: how many are refresh rows.
        entries: where in the pool each saved row goes.
        references: entries in the pool, and places among the refresh rows in this order, that
            selective rows are held against.
        lengths: how many there are of each of these indices.
    """

    def __init__(self, plan: BatchPlan) -> None:
        self._plan = plan
        refresh, pool, batch = plan.refresh or (), plan.from_pool, plan.from_batch
        saved = [] if plan.saved is None else list(plan.saved.places)
        places = set(saved)
        moved = saved + [place for place in range(len(refresh)) if place not in places]
        rows = tuple(refresh)
        self.order = [rows[place] for place in moved]
        self.order += [row for some in plan.selective for row in some.rows]
        self.refreshed = len(rows)
        self.entries = () if plan.saved is None else plan.saved.entries.places
        self.references = (
            () if pool is None else pool.references.places,
            () if batch is None else tuple(moved.index(place) for place in batch.references),
        )
        self.lengths = (len(self.entries), *map(len, self.references))

    @property
    def index(self) -> tuple[int, ...]:
        """All indices, one after the other."""
        return (*self.entries, *self.references[0], *self.references[1])

    def plan(self, entries: Tensor, from_pool: Tensor, from_batch: Tensor) -> BatchPlan:
        """Return the plan of rows in this order, whose indices are these tensors."""
        device, kind = self._plan.kind.device, self._plan.kind
        saved, refresh = len(self.entries), self.refreshed
        pool_end, end = refresh + len(self.references[0]), len(self.order)

        def selective(first: int, end: int, references: Tensor) -> Selective | None:
            if first == end:
                return None
            return Selective(Rows(range(first, end), device), GivenIndex(references))

        return BatchPlan(
            kind=kind,
            pool=self._plan.pool,
            budget=self._plan.budget,
            frames=tuple(range(end)),
            refresh=Rows(range(refresh), device) if refresh else None,
            from_pool=selective(refresh, pool_end, from_pool),
            from_batch=selective(pool_end, end, from_batch),
            saved=Saved(Rows(range(saved), device), GivenIndex(entries)) if saved else None,
        )


class _Inputs:
    """What a graph of a layout reads: frames in its order, its indices, and rotary tables.

    Attributes:
        back: where each row of the batch is in the layout's order, int64 [F]; None: in its place.
    """

    def __init__(self, frames: Tensor, layout: _Layout, tables: Sequence[Tensor]) -> None:
        self._frames = frames
        self._index = layout.index
        self._tables = tables
        self._rows: Tensor | None = None
        self.back: Tensor | None = None
        order = layout.order
        if order != list(range(len(order))):
            back = [0] * len(order)
            for place, row in enumerate(order):
                back[row] = place
            # One copy to the device for both.
            self._rows, self.back = index_tensor([*order, *back], frames.device).chunk(2)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self._frames.device

    def made(self) -> tuple[Tensor, ...]:
        """Return tensors for a graph to read."""
        index = torch.empty(len(self._index), dtype=torch.int64, device=self.device)
        tables = (torch.empty_like(table) for table in self._tables)
        frames = torch.empty_like(self._frames, memory_format=torch.contiguous_format)
        return frames, index, *tables

    def write(self, held: Sequence[Tensor], before: object) -> object:
        """Write the inputs to a graph's tensors; indices only where they are not those of before.

        Returns:
            The indices.
        """
        frames, index, *tables = held
        if self._rows is None:
            frames.copy_(self._frames)
        else:
            torch.index_select(self._frames, 0, self._rows, out=frames)
        if self._index != before:
            index.copy_(index_tensor(self._index, self.device))
        for table, given in zip(tables, self._tables, strict=True):
            table.copy_(given)
        return self._index
