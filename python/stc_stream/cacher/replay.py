"""A whole batch run from one graph: its plan with rows in a fixed order, its indices as inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from stc_stream.cacher.attention import Positions
from stc_stream.cacher.graphs import GraphStore
from stc_stream.cacher.layer import run_layer
from stc_stream.cacher.plan import BatchPlan, GivenIndex, Rows, Saved, Selective
from stc_stream.cacher.waits import index_tensor
from stc_stream.towers import TowerSpec


class PlanGraphs:
    """Runs all layers of a tower from graphs, one for all plans of the same shape.

    Args:
        tower: the tower.
        store: holds the graphs.
    """

    def __init__(self, tower: TowerSpec, store: GraphStore) -> None:
        self._tower = tower
        self._store = store

    def refuse(self, reason: str) -> None:
        """Run everything eagerly from now on, and warn of it once."""
        self._store.refuse(reason)

    def run(self, plan: BatchPlan, frames: Tensor, positions: Positions) -> list[Tensor] | None:
        """Return what each layer gives for a plan's frames, [F, T, C]; None: run them eagerly.

        Args:
            plan: the plan.
            frames: the first layer's input, [F, T, C].
            positions: where the tokens of a frame are.
        """
        reason = self._not_capturable(plan)
        if reason is not None:
            self.refuse(reason)
            return None
        layout = _Layout(plan)
        order, entries, references = layout.order, layout.entries, layout.references
        lengths = [len(order), len(entries), *map(len, references)]
        # One copy to the device for all of them.
        index = index_tensor([*order, *entries, *references[0], *references[1]], plan.kind.device)
        rows, *indices = index.split(lengths)
        tables = () if positions.cos is None else (positions.cos, positions.sin)
        plan.pool.allocate()
        weights = tuple(_place(each) for layer in self._tower.layers for each in layer.weights())
        # Under new hooks a batch runs eagerly once, which shows whether they change the tokens.
        hooks = tuple(
            (*layer.module._forward_pre_hooks, *layer.module._forward_hooks)
            for layer in self._tower.layers
        )
        shape = (len(plan.refresh or ()), *lengths)
        key = (plan.kind, plan.pool.generation, shape, weights, hooks)

        def work(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
            return self._all_layers(layout, inputs)

        given = (frames.index_select(0, rows), *indices, *tables)
        # Rows may be held against the very references that the batch replaces.
        rehearsal = plan.pool.kept_as_is(entries)
        outputs = self._store.run(key, given, work, rehearsal, self._hooked)
        if outputs is None:
            return None
        if order != sorted(order):
            back = torch.empty_like(rows)
            back.index_copy_(0, rows, torch.arange(len(order), device=rows.device))
            outputs = [output.index_select(-3, back) for output in outputs]
        return [*outputs[0], outputs[1]] if len(outputs) == 2 else list(outputs)

    def _all_layers(self, layout: _Layout, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Run every layer over rows in the layout's order.

        Returns the outputs of all layers but the last, stacked, and the last's.
        """
        frames, entries, from_pool, from_batch, *tables = inputs
        plan = layout.plan(entries, from_pool, from_batch)
        cos, sin = tables or (None, None)
        positions = Positions(plan.kind.tokens, cos, sin)
        x, normed, outputs = frames, None, []
        for number, layer in enumerate(self._tower.layers):
            next_norm = self._tower.next_norm(number)
            output = run_layer(layer, number, plan, x, positions, normed, next_norm)
            x, normed = output.tokens, output.normed
            outputs.append(x)
        return outputs if len(outputs) == 1 else (torch.stack(outputs[:-1]), outputs[-1])

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


class _Layout:
    """A plan's rows in an order that depends on how many there are of each sort alone.

    Refresh rows that are saved come first, then the other refresh rows, the rows held against the
    pool, and those held against this batch.

    Attributes:
        order: the rows.
        entries: where in the pool each saved row goes.
        references: entries in the pool, and places among the refresh rows in this order, that
            selective rows are held against.
    """

    def __init__(self, plan: BatchPlan) -> None:
        self._plan = plan
        refresh, pool, batch = plan.refresh or (), plan.from_pool, plan.from_batch
        places = list(range(len(refresh)))
        saved = [] if plan.saved is None else list(plan.saved.places)
        moved = saved + [place for place in places if place not in set(saved)]
        rows = tuple(refresh)
        self.order = [rows[place] for place in moved]
        self.order += [row for some in plan.selective for row in some.rows]
        self.entries = () if plan.saved is None else plan.saved.entries.places
        self.references = (
            () if pool is None else pool.references.places,
            () if batch is None else tuple(moved.index(place) for place in batch.references),
        )

    def plan(self, entries: Tensor, from_pool: Tensor, from_batch: Tensor) -> BatchPlan:
        """Return the plan of rows in this order, whose indices are these tensors."""
        device, kind = self._plan.kind.device, self._plan.kind
        saved, refresh = len(self.entries), len(self._plan.refresh or ())
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


def _place(weight: Tensor) -> int:
    """Return what a graph finds a weight by; a tensor of another class has no place of its own."""
    return weight.data_ptr() if type(weight) in (Tensor, Parameter) else id(weight)
