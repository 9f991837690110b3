"""`layer_norm_gather` on a GPU: one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._blocks import block_sizes
from stc_kernels._launching import blocks, launch, unit_channels
from stc_kernels.ops.layer_norm_gather.kernel import layer_norm_gather_kernel


def layer_norm_gather(
    tokens: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    added: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Return the tokens that `index` names, with something added, and their layer norm."""
    tokens = unit_channels(tokens)
    added_rows = tokens if added is None else unit_channels(added)
    frames, length, channels = tokens.shape
    chosen = index.shape[1]
    gathered = torch.empty((frames, chosen, channels), dtype=tokens.dtype, device=tokens.device)
    normed = torch.empty_like(gathered)
    sizes = block_sizes("layer_norm_gather", tokens)
    launch(
        layer_norm_gather_kernel,
        frames * blocks(chosen, sizes["BLOCK_T"]),
        tokens,
        index,
        added_rows,
        weight.contiguous(),
        weight if bias is None else bias.contiguous(),
        gathered,
        normed,
        eps,
        length,
        channels,
        chosen,
        tokens.stride(0),
        tokens.stride(1),
        index.stride(0),
        index.stride(1),
        added_rows.stride(0),
        added_rows.stride(1),
        HAS_ADDED=added is not None,
        HAS_BIAS=bias is not None,
        **sizes,
    )
    return gathered, normed
