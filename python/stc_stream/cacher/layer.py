"""One tower layer over a batch of refresh rows and selective rows (algorithm.md, section 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

import stc_kernels
from stc_stream.cacher.attention import Positions, attend
from stc_stream.cacher.plan import BatchPlan, Budget, Rows, Selective
from stc_stream.cacher.record import Comparison, LayerRecord
from stc_stream.cacher.references import LayerReferences, Refreshed
from stc_stream.cacher.selection import chosen_tokens
from stc_stream.towers import TowerLayer


@dataclass(frozen=True, eq=False)
class LayerOutput:
    """What a layer gives.

    Attributes:
        tokens: its output, [B, T, C].
        normed: the next layer's LN1 of it, where one pass gave both.
        computed: tokens computed, of all rows together.
    """

    tokens: Tensor
    normed: Tensor | None
    computed: int


def run_layer(
    layer: TowerLayer,
    number: int,
    plan: BatchPlan,
    x: Tensor,
    positions: Positions,
    normed: Tensor | None = None,
    next_norm: nn.Module | None = None,
    records: list[LayerRecord] | None = None,
) -> LayerOutput:
    """Run one layer over a batch and keep the references that its refresh rows leave.

    Args:
        layer: the layer's parts.
        number: its place in the tower.
        plan: what becomes of each row.
        x: the layer's input, [B, T, C]; left as it is.
        positions: where the tokens of a frame are.
        normed: LN1 of x, where the layer before has made it.
        next_norm: LN1 of the layer after.
        records: takes what the layer did; None: nothing does.
    """
    if normed is None:
        normed = layer.norm1(x)
    parts = _parts(number, plan, x, normed, layer.key(normed))
    if records is not None:
        records.append(_record(plan, parts))

    chosen = _join([part.normed for part in parts])
    queries = _split(layer.query(chosen), parts)
    values = _split(layer.value(chosen), parts)
    contexts = []
    for part, query, value in zip(parts, queries, values, strict=True):
        part.value, index = value, None
        if part.choice is not None:
            part.value = part.choice.merge(part.value, part.choice.source.value)
            index = part.choice.index
        contexts.append(attend(layer, positions, query, part.key, part.value, index))

    attended = layer.output(_join(contexts))
    h, normed = _second_norm(layer, plan, parts, attended)
    expanded = layer.mlp(normed)
    outputs = _split(h.add_(expanded), parts)

    if plan.from_batch is not None or plan.saved is not None:
        # Only rows that another row or another batch is held against need the sum.
        branches = (_split(attended, parts)[0], _split(expanded, parts)[0])
        parts[0].delta = torch.add(*branches).to(x.dtype)
    if len(parts) == 1:
        output, normed = _close(parts[0], outputs[0], next_norm)
    else:
        output, normed = torch.empty_like(x), None
        for part, computed in zip(parts, outputs, strict=True):
            part.rows.put(output, _close(part, computed, None)[0])
    # Last, since an entry may be one that another row of this batch was held against.
    if plan.saved is not None:
        take = plan.saved.places.take
        left = Refreshed(take(parts[0].key), take(parts[0].value), take(parts[0].delta))
        plan.pool.write(number, left, plan.saved.entries.tensor)
    return LayerOutput(output, normed, sum(len(part.rows) * part.computed for part in parts))


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


def _parts(number: int, plan: BatchPlan, x: Tensor, normed: Tensor, key: Tensor) -> list[_Part]:
    """Return the refresh rows, then the selective ones with the tokens they recompute."""
    parts = []
    if plan.refresh is not None:
        take = plan.refresh.take
        parts.append(_Part(plan.refresh, take(x), take(normed), take(key)))
    if plan.from_pool is not None:
        held = plan.pool.read(number)
        references = plan.from_pool.references.tensor
        kept = held.keys(references, key.dtype)
        parts += _selective(plan.budget, plan.from_pool, x, normed, key, held, *kept)
    if plan.from_batch is not None:
        refreshed = parts[0]
        kept = (plan.pool.as_kept(refreshed.key), plan.from_batch.references.tensor)
        parts += _selective(plan.budget, plan.from_batch, x, normed, key, refreshed, *kept)
    return parts


def _selective(
    budget: Budget,
    some: Selective,
    x: Tensor,
    normed: Tensor,
    key: Tensor,
    source: LayerReferences | _Part,
    compared: Tensor,
    compared_index: Tensor,
) -> list[_Part]:
    """Return selective rows that share a source of references, with the tokens they recompute.

    Args:
        budget: how many tokens, and which.
        some: the rows.
        x, normed, key: of all rows, [B, T, C] each.
        source: where the references are.
        compared: keys to compare with.
        compared_index: which of them each row is held against, int64 [F].
    """
    rows, references = some.rows, some.references.tensor
    frames, candidates, current = rows.take(x), rows.take(normed), rows.take(key)
    kept = (source, references, compared, compared_index)
    if budget.threshold is not None:
        return _below_threshold(budget, rows, frames, candidates, current, *kept)
    if budget.selection is not None:
        reference = compared.index_select(0, compared_index)
        index, slot = chosen_tokens(
            budget.selection, budget.prefix, current, reference, budget.most
        )
    else:
        index, slot = stc_kernels.select_dynamic(
            current, compared, budget.prefix + budget.most, compared_index, budget.metric
        )
    chosen = stc_kernels.gather_tokens(candidates, index)
    return [_Part(rows, frames, chosen, current, _Choice(index, slot, *kept))]


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
    layer: TowerLayer, plan: BatchPlan, parts: Sequence[_Part], attended: Tensor
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
    # Refresh rows alone have the layer's own input as residual, which must stay as it is.
    h = residual.add_(attended) if plan.selective else residual + attended
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


def _record(plan: BatchPlan, parts: Sequence[_Part]) -> LayerRecord:
    device = parts[0].key.device
    recomputed = torch.ones(len(plan.frames), plan.kind.tokens, dtype=torch.bool, device=device)
    refreshed = torch.ones(len(plan.frames), dtype=torch.bool, device=device)
    comparisons = []
    for part in parts:
        if part.choice is not None:
            recomputed[part.rows.tensor] = part.choice.slot >= 0
            refreshed[part.rows.tensor] = False
            # Copied: the pool may hold other references by the time someone asks.
            reference = part.choice.compared.index_select(0, part.choice.compared_index)
            comparisons.append(Comparison(part.rows.tensor, part.key, reference))
    return LayerRecord(recomputed, refreshed, tuple(comparisons), plan.budget.metric)
