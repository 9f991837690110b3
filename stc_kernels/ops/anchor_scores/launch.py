"""`anchor_scores` on a GPU: one launch for the dual anchors, two for the gaussian strategy.

On AMD one more each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._blocks import block_sizes
from stc_kernels._counters import zeroed_counters
from stc_kernels._launching import (
    blocks,
    counts_finished_programs,
    launch,
    next_power_of_2,
    selection_warps,
    unit_channels,
)
from stc_kernels.ops.anchor_scores.kernel import (
    anchor_kernel,
    column_blocks_kernel,
    finish_frames_kernel,
    token_squares_kernel,
)

_QUANTITIES = 3
_HELD = 2048  # partial sums that a program holds at once


def anchor_scores(
    tokens: Tensor,
    temporal_anchor: Tensor | None = None,
    strategy: str = "dual_anchor",
    alpha: float = 0.5,
    channels: Tensor | None = None,
) -> Tensor:
    """Return the novelty of each token against its frame and against the past."""
    scores = torch.empty(tokens.shape[:2], dtype=torch.float32, device=tokens.device)
    run_anchors(unit_channels(tokens), temporal_anchor, strategy, alpha, channels, scores=scores)
    return scores


def run_anchors(
    tokens: Tensor,
    temporal_anchor: Tensor | None,
    strategy: str,
    alpha: float,
    channels: Tensor | None,
    *,
    scores: Tensor | None = None,
    index: Tensor | None = None,
    kept: Tensor | None = None,
) -> None:
    """Launch what fills scores, or index, or index and kept (the gaussian strategy alone).

    `tokens` has unit channel stride; the results are contiguous.
    """
    frames, length, width = tokens.shape
    scored = width if channels is None else channels.shape[0]
    gaussian = strategy == "gaussian"
    # Only to have something to point at where an argument or a result is not there.
    nothing = tokens
    at = nothing if channels is None else channels.contiguous()
    temporal = nothing if temporal_anchor is None else unit_channels(temporal_anchor)

    def scratch(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=tokens.device)

    square = scratch(frames, length)
    if gaussian:
        rows = block_sizes("patch_similarity", tokens)
        launch(
            token_squares_kernel,
            frames * blocks(length, rows["BLOCK_T"]),
            tokens,
            at,
            square,
            length,
            scored,
            width,
            tokens.stride(0),
            tokens.stride(1),
            HAS_CHANNELS=channels is not None,
            **rows,
        )
    sizes = block_sizes("anchor_scores", tokens)
    sizes["num_warps"] = selection_warps(int(length), sizes["num_warps"])
    gather = block_sizes("gather_tokens", tokens)
    block_tokens = next_power_of_2(int(length))
    count = blocks(int(scored), sizes["BLOCK_C"])
    sums = (
        tokens,
        at,
        temporal,
        square,
        scratch(frames, _QUANTITIES, count, length),
        scratch(frames, 2, count),
    )
    results = (
        nothing if scores is None else scores,
        nothing if index is None else index,
        nothing if kept is None else kept,
        alpha,
        1.0 - alpha,
        1 if index is None else index.shape[1],
    )
    shape = (
        length,
        scored,
        width,
        tokens.stride(0),
        tokens.stride(1),
        temporal.stride(0) if temporal.dim() == 2 else 0,
    )
    summing = {
        "GAUSSIAN": gaussian,
        "HAS_TEMPORAL": temporal_anchor is not None,
        "HAS_CHANNELS": channels is not None,
    } | sizes
    choosing = {
        "CHOOSE": index is not None,
        "GATHER": kept is not None,
        "BLOCK_TOKENS": block_tokens,
        "BLOCK_B": max(1, _HELD // block_tokens),
        "GATHER_T": gather["BLOCK_T"],
        "GATHER_C": gather["BLOCK_C"],
    }
    if counts_finished_programs():
        arguments = (*sums, zeroed_counters(frames, tokens), *results, *shape)
        launch(anchor_kernel, frames * count, *arguments, **summing, **choosing)
    else:
        launch(column_blocks_kernel, frames * count, *sums, *shape, **summing)
        launch(finish_frames_kernel, frames, *sums, *results, *shape, **summing, **choosing)
