"""Each op in plain PyTorch, in the ways that a user would write it: what ours is held against.

Rows are read and written by advanced indexing, several times faster than `gather` and `scatter` on
a CPU. Where there is more than one plain way, `ways` has them all, since which is the fastest
depends on the op, its size and the machine: cosines by torch's own `cosine_similarity`, as the
formulas read, or *lean*, with fewer passes over the tokens; computed in the tokens' own dtype, as
most code does, or converted to float32 first, as ours computes. `merge_tokens` gets the index of
the updated tokens, which is what a user has; ours takes the slots that `select_dynamic` returns.
Tests hold all of them against the definitions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

Cosine = Callable[[Tensor, Tensor], Tensor]
Way = Callable[..., Tensor | tuple[Tensor, Tensor]]
# What scores are computed in; None: whatever the tokens are.
Dtype = torch.dtype | None


def plain_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return cos(a, b) over the last dimension."""
    return functional.cosine_similarity(a, b, dim=-1)


def lean_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the same from one product and two norms, instead of normalising both first."""
    return (a * b).sum(-1) / (a.norm(dim=-1).clamp_min(1e-8) * b.norm(dim=-1).clamp_min(1e-8))


def ways(op: str, dtype: str) -> dict[str, Way]:
    """Return the plain ways to write an op on tokens of a dtype, by name; ``eager`` is always one.

    ``float32`` converts the tokens first and scores them as the definition does; the others score
    in the precision of the tokens.
    """
    written: Way = globals()[op]
    found = {"eager": written}
    if op in _WITH_COSINE:
        found["lean"] = partial(written, cosine=lean_cosine)
    if op in (*_WITH_COSINE, "quiet_channels") and dtype != "float32":
        first = {name: partial(way, dtype=torch.float32) for name, way in found.items()}
        found["float32"] = first["eager"]
        if "lean" in first:
            found["float32_lean"] = first["lean"]
    return found


def patch_similarity(
    current: Tensor, reference: Tensor, cosine: Cosine = plain_cosine, dtype: Dtype = None
) -> Tensor:
    """Return the cosine of each token to the reference token at its place, [F, T]."""
    return cosine(_as(current, dtype), _as(reference, dtype))


def select_dynamic(
    current: Tensor, reference: Tensor, k: int, cosine: Cosine = plain_cosine, dtype: Dtype = None
) -> tuple[Tensor, Tensor]:
    """Return the index of the k least similar tokens, ascending, and every token's slot."""
    similarity = patch_similarity(current, reference, cosine, dtype)
    index = similarity.topk(k, dim=1, largest=False, sorted=False).indices.sort(dim=1).values
    slot = torch.full(similarity.shape, -1, dtype=torch.int32, device=current.device)
    places = torch.arange(k, dtype=torch.int32, device=current.device)
    return index, slot.scatter_(1, index, places.expand_as(index))


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Return the tokens that `index` names, [F, k, C]."""
    return tokens[_rows(index), index]


def merge_tokens(updated: Tensor, cached: Tensor, index: Tensor, residual: Tensor) -> Tensor:
    """Return cached + residual with the rows of `index` updated, [F, T, C]."""
    merged = cached + residual
    merged[_rows(index), index] = updated
    return merged


def merge_tokens_norm(
    updated: Tensor, cached: Tensor, index: Tensor, residual: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the same and its layer norm."""
    merged = merge_tokens(updated, cached, index, residual)
    return merged, functional.layer_norm(merged, weight.shape, weight, bias, 1e-6)


def layer_norm_gather(
    tokens: Tensor, index: Tensor, added: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the tokens that `index` names plus `added`, and their layer norm."""
    gathered = gather_tokens(tokens, index) + added
    return gathered, functional.layer_norm(gathered, weight.shape, weight, bias, 1e-6)


def quiet_channels(tokens: Tensor, keep: int, dtype: Dtype = None) -> Tensor:
    """Return the channels of lowest variance, ascending by variance, [keep]."""
    return _as(tokens, dtype).flatten(0, 1).var(0, correction=0).argsort()[:keep]


def anchor_scores(
    tokens: Tensor, temporal_anchor: Tensor, cosine: Cosine = plain_cosine, dtype: Dtype = None
) -> Tensor:
    """Return the novelty against the frame's mean and against the past (dual anchor), [F, T]."""
    z = _as(tokens, dtype)
    spatial = 1 - cosine(z, z.mean(1, keepdim=True))
    temporal = 1 - cosine(z, temporal_anchor.to(z.dtype).unsqueeze(1))
    return 0.5 * temporal + 0.5 * spatial


def topk_gather(tokens: Tensor, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k tokens of highest score in order of position, and their index."""
    index = scores.topk(k, dim=1, sorted=False).indices.sort(dim=1).values
    return gather_tokens(tokens, index), index


def prune_tokens(
    tokens: Tensor,
    k: int,
    temporal_anchor: Tensor,
    cosine: Cosine = plain_cosine,
    dtype: Dtype = None,
) -> tuple[Tensor, Tensor]:
    """Return the k most novel tokens in order of position, and their index."""
    return topk_gather(tokens, anchor_scores(tokens, temporal_anchor, cosine, dtype), k)


_WITH_COSINE = ("patch_similarity", "select_dynamic", "anchor_scores", "prune_tokens")


def _as(tokens: Tensor, dtype: Dtype) -> Tensor:
    return tokens if dtype is None else tokens.to(dtype)


def _rows(index: Tensor) -> Tensor:
    return torch.arange(index.shape[0], device=index.device).unsqueeze(1)
