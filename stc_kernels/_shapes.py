"""The shape and dtype of every op's results, for the compiler (the ops' fake kernels)."""

from __future__ import annotations

import torch
from torch import Tensor


def patch_similarity(
    current: Tensor,
    reference: Tensor,
    reference_index: Tensor | None = None,
    metric: str = "cosine",
) -> Tensor:
    """float32 [F, T]."""
    return current.new_empty(current.shape[:2], dtype=torch.float32)


def select_dynamic(
    current: Tensor,
    reference: Tensor,
    k: int,
    reference_index: Tensor | None = None,
    metric: str = "cosine",
) -> tuple[Tensor, Tensor]:
    """int64 [F, k] and int32 [F, T]."""
    index = current.new_empty((current.shape[0], k), dtype=torch.int64)
    return index, current.new_empty(current.shape[:2], dtype=torch.int32)


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """[F, k, C] of the tokens' dtype."""
    return tokens.new_empty((*index.shape, tokens.shape[2]))


def merge_tokens(
    updated: Tensor,
    cached: Tensor,
    slot: Tensor,
    reference_index: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """[F, T, C] of the cached tokens' dtype."""
    return cached.new_empty((updated.shape[0], cached.shape[1], cached.shape[2]))


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
    """[F, T, C] of the cached tokens' dtype, twice."""
    merged = merge_tokens(updated, cached, slot)
    return merged, torch.empty_like(merged)


def layer_norm_gather(
    tokens: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    added: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """[F, k, C] of the tokens' dtype, twice."""
    gathered = gather_tokens(tokens, index)
    return gathered, torch.empty_like(gathered)


def quiet_channels(tokens: Tensor, keep: int) -> Tensor:
    """int64 [keep]."""
    return tokens.new_empty((keep,), dtype=torch.int64)


def anchor_scores(
    tokens: Tensor,
    temporal_anchor: Tensor | None = None,
    strategy: str = "dual_anchor",
    alpha: float = 0.5,
    channels: Tensor | None = None,
) -> Tensor:
    """float32 [F, T]."""
    return tokens.new_empty(tokens.shape[:2], dtype=torch.float32)


def topk_gather(
    tokens: Tensor, scores: Tensor, k: int, largest: bool = True
) -> tuple[Tensor, Tensor]:
    """[F, k, D] of the tokens' dtype and int64 [F, k]."""
    return _kept(tokens, k)


def prune_tokens(
    tokens: Tensor,
    k: int,
    temporal_anchor: Tensor | None = None,
    strategy: str = "dual_anchor",
    alpha: float = 0.5,
    channels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """[F, k, D] of the tokens' dtype and int64 [F, k]."""
    return _kept(tokens, k)


def _kept(tokens: Tensor, k: int) -> tuple[Tensor, Tensor]:
    frames, _, channels = tokens.shape
    index = tokens.new_empty((frames, k), dtype=torch.int64)
    return tokens.new_empty((frames, k, channels)), index
