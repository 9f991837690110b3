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
        norm_a = a.square().sum(-1).sqrt().clamp_min(NORM_FLOOR)
        norm_b = b.square().sum(-1).sqrt().clamp_min(NORM_FLOOR)
        return (a * b).sum(-1) / (norm_a * norm_b)
    if metric == "dot":
        return (a * b).sum(-1)
    if metric == "l1":
        return -(a - b).abs().sum(-1)
    return -(a - b).square().sum(-1).sqrt()


def paired(reference: Tensor, reference_index: Tensor | None, frames: int) -> Tensor:
    """Return the reference of each frame, [F, T, C]."""
    if reference_index is not None:
        return torch.index_select(reference, 0, reference_index)
    return reference.expand(frames, -1, -1)
