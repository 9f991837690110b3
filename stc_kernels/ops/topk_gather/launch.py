"""`topk_gather` on a GPU: one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._blocks import block_sizes
from stc_kernels._launching import (
    blocks,
    launch,
    next_power_of_2,
    selection_warps,
    unit_channels,
)
from stc_kernels.ops.topk_gather.kernel import topk_gather_kernel


def topk_gather(
    tokens: Tensor, scores: Tensor, k: int, largest: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the k tokens of highest (or lowest) score in order of position."""
    tokens = unit_channels(tokens)
    frames, length, channels = tokens.shape
    kept = torch.empty((frames, k, channels), dtype=tokens.dtype, device=tokens.device)
    index = torch.empty((frames, k), dtype=torch.int64, device=tokens.device)
    sizes = block_sizes("topk_gather", tokens)
    sizes["num_warps"] = selection_warps(int(length), sizes["num_warps"])
    launch(
        topk_gather_kernel,
        frames * blocks(length, sizes["BLOCK_T"]),
        tokens,
        scores,
        kept,
        index,
        length,
        channels,
        k,
        tokens.stride(0),
        tokens.stride(1),
        scores.stride(0),
        scores.stride(1),
        LARGEST=largest,
        BLOCK_TOKENS=next_power_of_2(int(length)),
        **sizes,
    )
    return kept, index
