"""`merge_tokens_norm` on a GPU: one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._blocks import block_sizes
from stc_kernels._launching import blocks, launch
from stc_kernels.ops.merge_tokens.launch import merge_arguments
from stc_kernels.ops.merge_tokens_norm.kernel import merge_tokens_norm_kernel


def merge_tokens_norm(
    updated: Tensor,
    cached: Tensor,
    slot: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    reference_index: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Return what `merge_tokens` returns, and the layer norm of its rows."""
    pointers, numbers, constants = merge_arguments(updated, cached, slot, reference_index, residual)
    frames, tokens, channels = updated.shape[0], cached.shape[1], cached.shape[2]
    merged = torch.empty((frames, tokens, channels), dtype=cached.dtype, device=cached.device)
    normed = torch.empty_like(merged)
    sizes = block_sizes("merge_tokens_norm", cached)
    launch(
        merge_tokens_norm_kernel,
        frames * blocks(tokens, sizes["BLOCK_T"]),
        *pointers,
        weight.contiguous(),
        weight if bias is None else bias.contiguous(),
        merged,
        normed,
        eps,
        *numbers,
        HAS_BIAS=bias is not None,
        **constants,
        **sizes,
    )
    return merged, normed
