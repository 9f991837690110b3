"""`patch_similarity` in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

NORM_FLOOR = 1e-8


def patch_similarity(
    current: Tensor,
    reference: Tensor,
    reference_index: Tensor | None = None,
    metric: str = "cosine",
) -> Tensor:
    """Return the similarity of each token to the reference token at its place."""
    a = current.float()  # [F, T, C]
    b = paired(reference, reference_index, current.shape[0]).float()  # [F, T, C]
    if metric == "cosine":
        return cosine(a, b)
    if metric == "dot":
        return (a * b).sum(-1)
    if metric == "l1":
        return -(a - b).abs().sum(-1)
    return -root((a - b).square().sum(-1))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return cos(a, b) over the last dimension; NaN where a norm is not finite."""
    norm_a, norm_b = root(a.square().sum(-1)), root(b.square().sum(-1))
    norms = norm_a.clamp_min(NORM_FLOOR) * norm_b.clamp_min(NORM_FLOOR)
    # A token whose squares overflow float32 is as much garbage as one that holds a NaN.
    finite = norm_a.isfinite() & norm_b.isfinite()
    return torch.where(finite, (a * b).sum(-1) / norms, torch.nan)


def root(square: Tensor) -> Tensor:
    """Return the square root, correctly rounded: torch's own float32 one is not everywhere."""
    return square.double().sqrt().float()


def paired(reference: Tensor, reference_index: Tensor | None, frames: int) -> Tensor:
    """Return the reference of each frame, [F, T, C]."""
    if reference_index is not None:
        return torch.index_select(reference, 0, reference_index)
    return reference.expand(frames, -1, -1)
