"""One tower layer over a batch of refresh rows and selective rows (algorithm.md, section 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

import stc_kernels
from stc_stream.cacher.attention import Positions, attend
from stc_stream.cacher.record import Comparison, LayerRecord
from stc_stream.cacher.references import (
    LayerReferences,
    ReferencePool,
    Refreshed,
)
from stc_stream.cacher.selection import TokenSelection, chosen_tokens
from stc_stream.towers import TowerLayer


class Rows:
    """Some rows of a batch, taken without a copy where they lie side by side."""

    def __init__(self, rows: Sequence[int], device: torch.device) -> None:
        self._first = rows[0]
        self._end = rows[0] + len(rows)
        self._adjacent = list(rows) == list(range(self._first, self._end))
        self._rows = rows
        self._device = device

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def index(self) -> Tensor:
        """The rows' places, int64."""
        return index_tensor(self._rows, self._device)

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

    def some(self, places: Sequence[int]) -> Rows:
        """Return those of the rows that are at `places`."""
        return Rows([self._rows[place] for place in places], self._device)


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


@dataclass(frozen=True)
class Budget:
    """How many tokens of a selective row are recomputed in a layer.

    Attributes:
        prefix: tokens at the start of a frame that always are.
        most: patches that are, or at most are with a threshold (k).
        metric: how keys are compared.
        threshold: patches less similar than this are recomputed; None: always `most`.
        step: what the number of patches is rounded up to a multiple of, with a threshold.
        selection: chooses the patches; None: those least similar are.
    """

    prefix: int
    most: int
    metric: str
    threshold: float | None = None
    step: int = 1
    selection: TokenSelection | None = None

    def tokens(self, below: int) -> int:
        """Return the tokens to recompute when so many, prefix included, are below threshold."""
        steps = max(1, -(-(below - self.prefix) // self.step))
        return self.prefix + min(self.most, steps * self.step)


@dataclass(eq=False)
class Batch:
    """What is done with each row of a batch, the same in every layer.

    Attributes:
        rows: rows in the batch (B).
        tokens: tokens a row (T).
        budget: what is recomputed of a selective row.
        refresh: rows computed whole; None: none.
        selective: the other rows, by source of references.
        pool: where references are kept.
        destinations: the slot in the pool of each new reference, int64; None: there are none.
        places: where each is among the refresh rows, int64; None: they are the first so many.
        records: takes a `LayerRecord` a layer; None when nothing records.
        computed: tokens computed so far, over all layers that ran.
    """

    rows: int
    tokens: int
    budget: Budget
    refresh: Rows | None
    selective: tuple[Selective, ...]
    pool: ReferencePool
    destinations: Tensor | None = None
    places: Tensor | None = None
    records: list[LayerRecord] | None = None
    computed: int = 0


def run_layer(
    layer: TowerLayer,
    number: int,
    batch: Batch,
    x: Tensor,
    positions: Positions,
    normed: Tensor | None = None,
    next_norm: nn.Module | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Run one layer over a batch and keep the references that its refresh rows leave.

    Args:
        layer: the layer's parts.
        number: its place in the tower.
        batch: what to do with each row.
        x: the layer's input, [B, T, C]; left as it is.
        positions: where the tokens of a frame are.
        normed: LN1 of x, where the layer before has made it.
        next_norm: LN1 of the layer after.

    Returns:
        The layer's output, [B, T, C], and `next_norm` of it where one pass gave both.
    """
    if normed is None:
        normed = layer.norm1(x)
    parts = _parts(number, batch, x, normed, layer.key(normed))
    if batch.records is not None:
        batch.records.append(_record(batch, parts))

    chosen = _join([part.normed for part in parts])
    queries = _split(layer.query(chosen), parts)
    values = _split(layer.value(chosen), parts)
    contexts = []
    for part, query, value in zip(parts, queries, values, strict=True):
        batch.computed += len(part.rows) * part.computed
        part.value, index = value, None
        if part.choice is not None:
            part.value = part.choice.merge(part.value, part.choice.source.value)
            index = part.choice.index
        contexts.append(attend(layer, positions, query, part.key, part.value, index))

    attended = layer.output(_join(contexts))
    h, normed = _second_norm(layer, batch, parts, attended)
    expanded = layer.mlp(normed)
    outputs = _split(h.add_(expanded), parts)

    if batch.refresh is not None:
        # Only rows that another row or another batch is held against need the sum.
        needed = (
            any(not group.stored for group in batch.selective) or batch.destinations is not None
        )
        if needed:
            branches = (_split(attended, parts)[0], _split(expanded, parts)[0])
            parts[0].delta = torch.add(*branches).to(x.dtype)
    if len(parts) == 1:
        output, normed = _close(parts[0], outputs[0], next_norm)
    else:
        output, normed = torch.empty_like(x), None
        for part, computed in zip(parts, outputs, strict=True):
            part.rows.put(output, _close(part, computed, None)[0])
    # Last, since a slot may be one that another row of this batch was held against.
    if batch.destinations is not None:
        left = Refreshed(parts[0].key, parts[0].value, parts[0].delta)
        batch.pool.write(number, left, batch.places, batch.destinations)
    return output, normed


def index_tensor(values: Sequence[int], device: torch.device) -> Tensor:
    """Return values as int64 on a device, without waiting for it."""
    index = torch.tensor(values, dtype=torch.int64)
    if device.type != "cuda":
        return index.to(device)
    return index.pin_memory().to(device, non_blocking=True)


@dataclass(eq=False)
class _Choice:
    """The tokens that selective rows recompute, and where the others come from."""

    index: Tensor
    slot: Tensor
    source: LayerReferences | _Part
    reference_index: Tensor
    compared: Tensor
    compared_index: Tensor

    def merge(self, updated: Tensor, cached: Tensor, residual: Tensor | None = None) -> Tensor:
        return stc_kernels.merge_tokens(updated, cached, self.slot, self.reference_index, residual)


@dataclass(eq=False)
class _Part:
    """Rows of one sort on their way through a layer.

    F rows, n tokens computed of each (all T on refresh rows, k on selective ones):
    frames [F, T, C] the layer's input; normed [F, n, C] the computed tokens after LN1;
    key [F, T, C]; value [F, T, C] once there is one; delta [F, T, C] likewise.
    """

    rows: Rows
    frames: Tensor
    normed: Tensor
    key: Tensor
    choice: _Choice | None = None
    value: Tensor = field(init=False)
    delta: Tensor = field(init=False)

    @property
    def computed(self) -> int:
        return self.normed.shape[1]

    @property
    def x(self) -> Tensor:
        """The computed tokens before LN1, [F, n, C]."""
        if self.choice is None:
            return self.frames
        return stc_kernels.gather_tokens(self.frames, self.choice.index)


def _parts(number: int, batch: Batch, x: Tensor, normed: Tensor, key: Tensor) -> list[_Part]:
    parts = []
    if batch.refresh is not None:
        rows = batch.refresh
        parts.append(_Part(rows, rows.take(x), rows.take(normed), rows.take(key)))
    for group in batch.selective:
        rows = group.rows
        current = rows.take(key)
        source: LayerReferences | _Part
        if group.stored:
            source = batch.pool.read(number)
            compared, compared_index = source.keys(group.reference_index, current.dtype)
        else:
            source = parts[0]
            compared = batch.pool.as_kept(source.key)
            compared_index = group.reference_index
        kept = (source, group.reference_index, compared, compared_index)
        frames, candidates = rows.take(x), rows.take(normed)
        if batch.budget.threshold is not None:
            parts += _below_threshold(batch.budget, rows, frames, candidates, current, *kept)
            continue
        index, slot = _chosen(batch.budget, current, compared, compared_index)
        chosen = stc_kernels.gather_tokens(candidates, index)
        parts.append(_Part(rows, frames, chosen, current, _Choice(index, slot, *kept)))
    return parts


def _chosen(
    budget: Budget, current: Tensor, compared: Tensor, compared_index: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the tokens that rows recompute, and each token's place among them."""
    if budget.selection is not None:
        reference = compared.index_select(0, compared_index)
        return chosen_tokens(budget.selection, budget.prefix, current, reference, budget.most)
    return stc_kernels.select_dynamic(
        current, compared, budget.prefix + budget.most, compared_index, budget.metric
    )


def _below_threshold(
    budget: Budget,
    rows: Rows,
    frames: Tensor,
    normed: Tensor,
    current: Tensor,
    source: LayerReferences | _Part,
    reference_index: Tensor,
    compared: Tensor,
    compared_index: Tensor,
) -> list[_Part]:
    """Return a part for each number of tokens that rows have below the threshold, in steps."""
    similarity = stc_kernels.patch_similarity(current, compared, compared_index, budget.metric)
    finite = similarity.isfinite()
    threshold = math.inf if budget.threshold is None else budget.threshold
    below = ((similarity < threshold) | ~finite).sum(dim=1).tolist()
    # What cannot be compared comes first, as in `select_dynamic`.
    scores = torch.where(finite, -similarity, torch.finfo(torch.float32).max)
    sizes = [budget.tokens(count) for count in below]
    parts = []
    for size in sorted(set(sizes)):
        group = Rows([row for row, own in enumerate(sizes) if own == size], current.device)
        chosen, index = stc_kernels.topk_gather(group.take(normed), group.take(scores), size)
        places = torch.arange(size, dtype=torch.int32, device=index.device)
        slot = index.new_full((len(group), scores.shape[1]), -1, dtype=torch.int32)
        slot.scatter_(1, index, places.expand(len(group), -1))
        choice = _Choice(
            index,
            slot,
            source,
            group.take(reference_index),
            compared,
            group.take(compared_index),
        )
        own_rows = rows.some([row for row, own in enumerate(sizes) if own == size])
        parts.append(_Part(own_rows, group.take(frames), chosen, group.take(current), choice))
    return parts


def _second_norm(
    layer: TowerLayer, batch: Batch, parts: Sequence[_Part], attended: Tensor
) -> tuple[Tensor, Tensor]:
    """Return h = x + A of all computed tokens, which is the caller's to write, and LN2 of it."""
    norm, part = layer.norm2, parts[0]
    if len(parts) == 1 and part.choice is not None and _fuses(norm, part.frames, attended):
        added = _split(attended, parts)[0]
        h, normed = stc_kernels.layer_norm_gather(
            part.frames, part.choice.index, norm.weight, norm.bias, added, norm.eps
        )
        return h.flatten(0, 1), normed.flatten(0, 1)
    residual = _join([part.x for part in parts])
    # Refresh rows alone have the layer's own input as residual, which is not ours to write.
    h = residual.add_(attended) if batch.selective else residual + attended
    return h, norm(h)


def _close(
    part: _Part, values: Tensor, next_norm: nn.Module | None
) -> tuple[Tensor, Tensor | None]:
    """Put recomputed and reused tokens together; and norm them, where one pass does both."""
    choice = part.choice
    if choice is None:
        return values, None
    cached = choice.source.delta
    if next_norm is not None and _fuses(next_norm, part.frames, values, cached):
        merged, normed = stc_kernels.merge_tokens_norm(
            values,
            cached,
            choice.slot,
            next_norm.weight,
            next_norm.bias,
            choice.reference_index,
            part.frames,
            next_norm.eps,
        )
        return merged, normed
    return choice.merge(values, cached, part.frames), None


def _fuses(norm: nn.Module, *tokens: Tensor) -> TypeGuard[nn.LayerNorm]:
    """Tell whether an op can take the place of a norm over these tokens."""
    if type(norm) is not nn.LayerNorm or norm.weight is None or len(norm.normalized_shape) != 1:
        return False
    if norm._forward_hooks or norm._forward_pre_hooks or "forward" in norm.__dict__:
        return False
    if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
        return False
    # A wrapper may have the name of what it wraps, but not its globals.
    written_in = getattr(nn.LayerNorm.forward, "__globals__", {}).get("__name__")
    if written_in != nn.LayerNorm.__module__:
        return False
    dtype, device = tokens[0].dtype, tokens[0].device.type
    return (
        norm.weight.dtype in (dtype, torch.float32)
        and (norm.bias is None or norm.bias.dtype == norm.weight.dtype)
        and all(each.dtype == dtype for each in tokens)
        and not torch.is_autocast_enabled(device)
    )


def _join(pieces: Sequence[Tensor]) -> Tensor:
    """Lay [F, n, C] pieces one after the other as [sum of F·n, C]; a single one stays in place."""
    if len(pieces) == 1:
        return pieces[0].flatten(0, 1)
    return torch.cat([piece.flatten(0, 1) for piece in pieces])


def _split(joined: Tensor, parts: Sequence[_Part]) -> list[Tensor]:
    """Undo `_join`: one [F, n, channels] view a part."""
    if len(parts) == 1:
        return [joined.view(len(parts[0].rows), parts[0].computed, -1)]
    sizes = [len(part.rows) * part.computed for part in parts]
    return [
        piece.view(len(part.rows), part.computed, -1)
        for piece, part in zip(torch.split(joined, sizes), parts, strict=True)
    ]


def _record(batch: Batch, parts: Sequence[_Part]) -> LayerRecord:
    device = parts[0].key.device
    recomputed = torch.ones(batch.rows, batch.tokens, dtype=torch.bool, device=device)
    refreshed = torch.ones(batch.rows, dtype=torch.bool, device=device)
    comparisons = []
    for part in parts:
        if part.choice is not None:
            recomputed[part.rows.index] = part.choice.slot >= 0
            refreshed[part.rows.index] = False
            # Copied: the pool may hold other references by the time someone asks.
            reference = part.choice.compared.index_select(0, part.choice.compared_index)
            comparisons.append(Comparison(part.rows.index, part.key, reference))
    return LayerRecord(recomputed, refreshed, tuple(comparisons), batch.budget.metric)
