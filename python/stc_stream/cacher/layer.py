"""One tower layer over a batch of refresh rows and selective rows (algorithm.md, section 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

import stc_kernels
from stc_stream.cacher.record import Comparison, LayerRecord
from stc_stream.cacher.references import LayerReferences, ReferencePool
from stc_stream.towers import TowerLayer


class Rows:
    """Some rows of a batch, taken without a copy where they lie side by side."""

    def __init__(self, rows: Sequence[int], device: torch.device) -> None:
        self._first = rows[0]
        self._end = rows[0] + len(rows)
        self._adjacent = list(rows) == list(range(self._first, self._end))
        self._rows = rows
        self._device = device

    @cached_property
    def index(self) -> Tensor:
        """The rows' places, int64."""
        return torch.tensor(self._rows, dtype=torch.int64, device=self._device)

    def take(self, batch: Tensor) -> Tensor:
        """Return these rows of `batch`, a view where that is possible."""
        if self._adjacent:
            return batch[self._first : self._end]
        return batch.index_select(0, self.index)

    def put(self, batch: Tensor, values: Tensor) -> None:
        """Write `values` to these rows of `batch`."""
        if self._adjacent:
            batch[self._first : self._end] = values
        else:
            batch.index_copy_(0, self.index, values)


@dataclass(frozen=True, eq=False)
class Selective:
    """Selective rows that share a source of references.

    Attributes:
        rows: which rows of the batch.
        stored: whether the references are the pool's; else they are refresh rows of this batch.
        reference_index: each row's slot in the pool, or place among the refresh rows, int64 [F].
    """

    rows: Rows
    stored: bool
    reference_index: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """What is done with each row of a batch, the same in every layer.

    Attributes:
        rows: rows in the batch (B).
        tokens: tokens a row (T).
        updated: tokens recomputed on a selective row (k).
        metric: how keys are compared.
        refresh: rows computed whole, `refreshes` of them; None: none.
        selective: the other rows, by source of references.
        pool: where references are kept.
        written: (place among the refresh rows, slot in the pool) of each new reference.
        records: takes a `LayerRecord` a layer; None when nothing records.
    """

    rows: int
    tokens: int
    updated: int
    metric: str
    refresh: Rows | None
    refreshes: int
    selective: tuple[Selective, ...]
    pool: ReferencePool
    written: tuple[tuple[int, int], ...]
    records: list[LayerRecord] | None


class QueryValueProjection:
    """The query and value projections as one product, following changes of their weights.

    The joined weight is made anew whenever a weight or bias is another tensor, or was written in
    place by an operation that torch counts; writes through `parameter.data` go unseen.
    """

    def __init__(self, query: nn.Linear, value: nn.Linear) -> None:
        self._query = query
        self._value = value
        self.clear()

    def clear(self) -> None:
        """Let go of the joined weight."""
        self._sources: tuple[Tensor | None, ...] = ()
        self._seen: tuple[object, ...] = ()
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return queries and values side by side: [n, C] to [n, 2C]."""
        sources = (self._query.weight, self._value.weight, self._query.bias, self._value.bias)
        seen = tuple(_state(source) for source in sources)
        if self._weight is None or seen != self._seen:
            self._weight, self._bias = _joined(*sources)
            # Held so that no new tensor can come to lie at an address that was seen before.
            self._sources = tuple(None if source is None else source.detach() for source in sources)
            self._seen = seen
        return functional.linear(tokens, self._weight, self._bias)


def run_layer(
    layer: TowerLayer, number: int, projection: QueryValueProjection, batch: Batch, x: Tensor
) -> Tensor:
    """Run one layer over a batch and keep the references that its refresh rows leave.

    Args:
        layer: the layer's parts.
        number: its place in the tower.
        projection: its query and value projections.
        batch: what to do with each row.
        x: the layer's input, [B, T, C]; left as it is.

    Returns:
        The layer's output, [B, T, C].
    """
    normed = layer.norm1(x)
    parts = _parts(number, batch, x, normed, layer.key(normed))
    if batch.records is not None:
        batch.records.append(_record(batch, parts))

    query_values = projection(_join([part.normed for part in parts]))
    contexts = []
    for part, query_value in zip(parts, _split(query_values, parts), strict=True):
        query, part.value = query_value.chunk(2, dim=-1)
        if part.choice is not None:
            part.value = part.choice.merge(part.value, part.choice.source.value)
        contexts.append(_attend(layer, query, part.key, part.value))

    attended = layer.output(_join(contexts))
    residual = _join([part.x for part in parts])
    # Refresh rows alone have the layer's own input as residual, which is not ours to write.
    h = residual.add_(attended) if batch.selective else residual + attended
    expanded = layer.mlp(layer.norm2(h))
    outputs = _split(h.add_(expanded), parts)

    if batch.refresh is not None:
        # Only rows that another row or another batch is held against need the sum.
        needed = any(not group.stored for group in batch.selective) or bool(batch.written)
        if needed:
            branches = (_split(attended, parts)[0], _split(expanded, parts)[0])
            parts[0].delta = torch.add(*branches).to(x.dtype)
    for place, part in enumerate(parts):
        if part.choice is not None:
            cached = part.choice.source.delta
            outputs[place] = part.choice.merge(outputs[place], cached, part.frames)
    if batch.written:
        _write(batch.pool.writable(number), parts[0], batch.written)
    if len(parts) == 1:
        return outputs[0]
    output = torch.empty_like(x)
    for part, values in zip(parts, outputs, strict=True):
        part.rows.put(output, values)
    return output


@dataclass(eq=False)
class _Choice:
    """The tokens that selective rows recompute, and where the others come from."""

    index: Tensor
    slot: Tensor
    source: LayerReferences | _Part
    reference_index: Tensor

    def merge(self, updated: Tensor, cached: Tensor, residual: Tensor | None = None) -> Tensor:
        return stc_kernels.merge_tokens(updated, cached, self.slot, self.reference_index, residual)


@dataclass(eq=False)
class _Part:
    """Rows of one sort on their way through a layer.

    F rows, n tokens computed of each (all T on refresh rows, k on selective ones):
    frames [F, T, C] the layer's input; normed, x [F, n, C] the computed tokens after and before
    LN1; key [F, T, C]; value [F, T, C] once there is one; delta [F, T, C] likewise.
    """

    rows: Rows
    frames: Tensor
    normed: Tensor
    x: Tensor
    key: Tensor
    choice: _Choice | None = None
    value: Tensor = field(init=False)
    delta: Tensor = field(init=False)


def _parts(number: int, batch: Batch, x: Tensor, normed: Tensor, key: Tensor) -> list[_Part]:
    parts = []
    if batch.refresh is not None:
        rows = batch.refresh
        frames = rows.take(x)
        parts.append(_Part(rows, frames, rows.take(normed), frames, rows.take(key)))
    for group in batch.selective:
        rows = group.rows
        frames = rows.take(x)
        current = rows.take(key)
        source = batch.pool.read(number) if group.stored else parts[0]
        index, slot = stc_kernels.select_dynamic(
            current, source.key, batch.updated, group.reference_index, batch.metric
        )
        parts.append(
            _Part(
                rows,
                frames,
                stc_kernels.gather_tokens(rows.take(normed), index),
                stc_kernels.gather_tokens(frames, index),
                current,
                _Choice(index, slot, source, group.reference_index),
            )
        )
    return parts


def _attend(layer: TowerLayer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the attention's context before the output projection, [F, n, C]."""
    query, key, value = (
        tensor.view(*tensor.shape[:2], layer.heads, -1).transpose(1, 2)
        for tensor in (query, key, value)
    )
    context = functional.scaled_dot_product_attention(query, key, value, scale=layer.scale)
    return context.transpose(1, 2).flatten(2)


def _write(references: LayerReferences, refresh: _Part, written: Sequence[tuple[int, int]]) -> None:
    for place, slot in written:
        references.key[slot].copy_(refresh.key[place])
        references.value[slot].copy_(refresh.value[place])
        references.delta[slot].copy_(refresh.delta[place])


def _join(pieces: Sequence[Tensor]) -> Tensor:
    """Lay [F, n, C] pieces one after the other as [sum of F·n, C]; a single one stays in place."""
    if len(pieces) == 1:
        return pieces[0].flatten(0, 1)
    return torch.cat([piece.flatten(0, 1) for piece in pieces])


def _split(joined: Tensor, parts: Sequence[_Part]) -> list[Tensor]:
    """Undo `_join`: one [F, n, channels] view a part."""
    sizes = [part.x.shape[0] * part.x.shape[1] for part in parts]
    return [
        piece.view(*part.x.shape[:2], -1)
        for piece, part in zip(torch.split(joined, sizes), parts, strict=True)
    ]


def _record(batch: Batch, parts: Sequence[_Part]) -> LayerRecord:
    device = parts[0].x.device
    recomputed = torch.ones(batch.rows, batch.tokens, dtype=torch.bool, device=device)
    refreshed = torch.ones(batch.rows, dtype=torch.bool, device=device)
    comparisons = []
    for part in parts:
        if part.choice is not None:
            recomputed[part.rows.index] = part.choice.slot >= 0
            refreshed[part.rows.index] = False
            # Copied: the pool may hold other references by the time someone asks.
            reference = part.choice.source.key.index_select(0, part.choice.reference_index)
            comparisons.append(Comparison(part.rows.index, part.key, reference))
    return LayerRecord(recomputed, refreshed, tuple(comparisons), batch.metric)


def _state(source: Tensor | None) -> tuple[object, ...]:
    if source is None:
        return ()
    # Inference tensors have no version; they cannot be written in place outside inference mode.
    version = -1 if source.is_inference() else source._version
    return (source.data_ptr(), version, source.shape, source.dtype, source.device)


def _joined(
    query: Tensor, value: Tensor, query_bias: Tensor | None, value_bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    weight = torch.cat([query, value])
    if query_bias is None and value_bias is None:
        return weight, None
    biases = [
        weights.new_zeros(weights.shape[0]) if bias is None else bias
        for weights, bias in ((query, query_bias), (value, value_bias))
    ]
    return weight, torch.cat(biases)
