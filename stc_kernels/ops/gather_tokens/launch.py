"""`gather_tokens` on a GPU: one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._blocks import block_sizes
from stc_kernels._launching import blocks, launch, unit_channels
from stc_kernels.ops.gather_tokens.kernel import gather_tokens_kernel


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Return the tokens that `index` names, in its order."""
    tokens = unit_channels(tokens)
    frames, length, channels = tokens.shape
    chosen = index.shape[1]
    out = torch.empty((frames, chosen, channels), dtype=tokens.dtype, device=tokens.device)
    sizes = block_sizes("gather_tokens", tokens)
    launch(
        gather_tokens_kernel,
        frames * blocks(chosen, sizes["BLOCK_T"]),
        tokens,
        index,
        out,
        length,
        channels,
        chosen,
        tokens.stride(0),
        tokens.stride(1),
        index.stride(0),
        index.stride(1),
        **sizes,
    )
    return out
