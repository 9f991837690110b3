"""Each op as a user would write it in plain PyTorch: what the benchmarks hold ours against.

Straightforward, and of the straightforward ways the faster one: rows are read and written by
advanced indexing, several times faster than `gather` and `scatter` on a CPU. Cosines are torch's
own `cosine_similarity`, as the formulas read; the ops that take any have a second, *lean* version,
whose cosine makes fewer passes over the tokens. Scores are float32 whatever the tokens are, as ours
are, so that all choose the same tokens. `merge_tokens` gets the index of the updated tokens, which
is what a user has; ours takes the slots that `select_dynamic` returns. Tests hold all of them
against the definitions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

Cosine = Callable[[Tensor, Tensor], Tensor]


def plain_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return cos(a, b) over the last dimension."""
    return functional.cosine_similarity(a, b, dim=-1)


def lean_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the same from one product and two norms, instead of normalising both first."""
    return (a * b).sum(-1) / (a.norm(dim=-1).clamp_min(1e-8) * b.norm(dim=-1).clamp_min(1e-8))


def patch_similarity(current: Tensor, reference: Tensor, cosine: Cosine = plain_cosine) -> Tensor:
    """Return the cosine of each token to the reference token at its place, [F, T]."""
    return cosine(current.float(), reference.float())


def select_dynamic(
    current: Tensor, reference: Tensor, k: int, cosine: Cosine = plain_cosine
) -> tuple[Tensor, Tensor]:
    """Return the index of the k least similar tokens, ascending, and every token's slot."""
    similarity = patch_similarity(current, reference, cosine)
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


def quiet_channels(tokens: Tensor, keep: int) -> Tensor:
    """Return the channels of lowest variance, ascending by variance, [keep]."""
    return tokens.flatten(0, 1).float().var(0, correction=0).argsort()[:keep]


def anchor_scores(tokens: Tensor, temporal_anchor: Tensor, cosine: Cosine = plain_cosine) -> Tensor:
    """Return the novelty against the frame's mean and against the past (dual anchor), [F, T]."""
    z = tokens.float()
    spatial = 1 - cosine(z, z.mean(1, keepdim=True))
    temporal = 1 - cosine(z, temporal_anchor.float().unsqueeze(1))
    return 0.5 * temporal + 0.5 * spatial


def topk_gather(tokens: Tensor, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k tokens of highest score in order of position, and their index."""
    index = scores.topk(k, dim=1, sorted=False).indices.sort(dim=1).values
    return gather_tokens(tokens, index), index


def prune_tokens(
    tokens: Tensor, k: int, temporal_anchor: Tensor, cosine: Cosine = plain_cosine
) -> tuple[Tensor, Tensor]:
    """Return the k most novel tokens in order of position, and their index."""
    return topk_gather(tokens, anchor_scores(tokens, temporal_anchor, cosine), k)


LEAN: dict[str, Callable[..., Tensor | tuple[Tensor, Tensor]]] = {
    "patch_similarity": partial(patch_similarity, cosine=lean_cosine),
    "select_dynamic": partial(select_dynamic, cosine=lean_cosine),
    "anchor_scores": partial(anchor_scores, cosine=lean_cosine),
    "prune_tokens": partial(prune_tokens, cosine=lean_cosine),
}
"""The lean version of the ops that take a cosine."""


def _rows(index: Tensor) -> Tensor:
    return torch.arange(index.shape[0], device=index.device).unsqueeze(1)
