"""`merge_tokens` in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels.ops._strides import contiguous
from stc_kernels.ops.gather_tokens.naive import gather_tokens
from stc_kernels.ops.patch_similarity.naive import paired


def merge_tokens(
    updated: Tensor,
    cached: Tensor,
    slot: Tensor,
    reference_index: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Return updated tokens where a token has a slot, reused ones elsewhere."""
    reused = paired(cached, reference_index, updated.shape[0])
    if residual is not None:
        # One rounding, as in a kernel that adds in float32.
        reused = (reused.float() + residual.float()).to(cached.dtype)
    if updated.shape[1] == 0:
        return reused.clone(memory_format=torch.contiguous_format)
    chosen = gather_tokens(updated, slot.clamp_min(0).long())
    return contiguous(torch.where((slot >= 0).unsqueeze(-1), chosen, reused))
