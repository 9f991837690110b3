"""`prune_tokens` in plain PyTorch: the definition."""

from __future__ import annotations

from torch import Tensor

from stc_kernels.ops.anchor_scores.naive import anchor_scores
from stc_kernels.ops.topk_gather.naive import topk_gather


def prune_tokens(
    tokens: Tensor,
    k: int,
    temporal_anchor: Tensor | None = None,
    strategy: str = "dual_anchor",
    alpha: float = 0.5,
    channels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the k most novel tokens of each frame and their places."""
    scores = anchor_scores(tokens, temporal_anchor, strategy, alpha, channels)
    return topk_gather(tokens, scores, k)
