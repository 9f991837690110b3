"""`anchor_scores` in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels.ops.patch_similarity.naive import NORM_FLOOR, cosine, root

BANDWIDTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)


def anchor_scores(
    tokens: Tensor,
    temporal_anchor: Tensor | None = None,
    strategy: str = "dual_anchor",
    alpha: float = 0.5,
    channels: Tensor | None = None,
) -> Tensor:
    """Return the novelty of each token against its frame and against the past."""
    z = tokens.float()
    if channels is not None:
        z = z[:, :, channels]
    square = z.square().sum(-1, keepdim=True)  # [F, T, 1]
    finite = square.isfinite()
    if strategy == "gaussian":
        z = torch.where(finite, z / _norm(z), torch.nan)
    # A token that is garbage must not spoil the anchor of the others.
    total = torch.where(finite, z, 0.0).sum(1, keepdim=True)
    spatial = total / finite.sum(1, keepdim=True).clamp_min(1)  # [F, 1, D]
    temporal = None
    if temporal_anchor is not None:
        temporal = temporal_anchor.float().expand(z.shape[0], z.shape[2]).unsqueeze(1)
    if strategy == "gaussian":
        closeness = _gaussian(z, spatial)
        if temporal is not None:
            closeness = closeness + _gaussian(z, temporal / _norm(temporal))
        return -closeness
    novelty = 1 - cosine(z, spatial)
    if temporal is not None:
        novelty = alpha * (1 - cosine(z, temporal)) + (1 - alpha) * novelty
    return novelty


def _norm(z: Tensor) -> Tensor:
    return root(z.square().sum(-1, keepdim=True)).clamp_min(NORM_FLOOR)


def _gaussian(z: Tensor, center: Tensor) -> Tensor:
    distance = (z - center).square().sum(-1)
    return torch.stack([torch.exp(-distance / (2 * a)) for a in BANDWIDTHS]).sum(0)
