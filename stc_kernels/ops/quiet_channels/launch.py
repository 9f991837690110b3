"""`quiet_channels` on a GPU: two launches, on AMD three."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._blocks import block_sizes
from stc_kernels._counters import zeroed_counters
from stc_kernels._launching import blocks, counts_finished_programs, launch, unit_channels
from stc_kernels.ops.quiet_channels.kernel import (
    add_chunks_kernel,
    channel_sums_kernel,
    channel_variance_kernel,
    rank_channels_kernel,
)

_ROWS = 256  # rows that a program sums
_RANKED = 16  # channels that a program ranks


def quiet_channels(tokens: Tensor, keep: int) -> Tensor:
    """Return the channels of lowest variance, ascending by variance."""
    tokens = unit_channels(tokens)
    frames, length, channels = tokens.shape
    device = tokens.device
    rows = frames * length
    # One at least, so that the variance of no rows is written too.
    chunks = rows // _ROWS + 1
    sizes = block_sizes("quiet_channels", tokens)
    width = blocks(int(channels), sizes["BLOCK_C"])
    # Flat: a dimension that may be 1 would have a tracer ask for the number of frames.
    sums = torch.empty(chunks * 2 * channels, dtype=torch.float64, device=device)
    variance = torch.empty(channels, dtype=torch.float32, device=device)
    shape = (rows, length, channels, tokens.stride(0), tokens.stride(1))
    if counts_finished_programs():
        counters = zeroed_counters(width, tokens)
        launched = (channel_variance_kernel, chunks * width, tokens, sums, counters, variance)
        launch(*launched, *shape, ROWS=_ROWS, **sizes)
    else:
        launch(channel_sums_kernel, chunks * width, tokens, sums, *shape, ROWS=_ROWS, **sizes)
        launch(add_chunks_kernel, width, sums, variance, rows, chunks, channels, **sizes)
    out = torch.empty(keep, dtype=torch.int64, device=device)
    launch(
        rank_channels_kernel,
        blocks(int(channels), _RANKED),
        variance,
        out,
        channels,
        keep,
        BLOCK=_RANKED,
        BLOCK_OTHERS=128,
        num_warps=4,
    )
    return out
