"""`prune_tokens` on a GPU: two launches."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._launching import unit_channels
from stc_kernels.ops.anchor_scores.launch import run_anchors
from stc_kernels.ops.gather_tokens.launch import gather_tokens


def prune_tokens(
    tokens: Tensor,
    k: int,
    temporal_anchor: Tensor | None = None,
    strategy: str = "dual_anchor",
    alpha: float = 0.5,
    channels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the k most novel tokens of each frame and their places."""
    tokens = unit_channels(tokens)
    frames, _, width = tokens.shape
    index = torch.empty((frames, k), dtype=torch.int64, device=tokens.device)
    if strategy == "dual_anchor":
        run_anchors(tokens, temporal_anchor, strategy, alpha, channels, index=index)
        return gather_tokens(tokens, index), index
    # The norms take a launch before, so the choice is copied by the program that made it.
    kept = torch.empty((frames, k, width), dtype=tokens.dtype, device=tokens.device)
    run_anchors(tokens, temporal_anchor, strategy, alpha, channels, index=index, kept=kept)
    return kept, index
