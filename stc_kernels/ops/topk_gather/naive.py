"""`topk_gather` in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels.ops._strides import contiguous
from stc_kernels.ops.gather_tokens.naive import gather_tokens


def topk_gather(
    tokens: Tensor, scores: Tensor, k: int, largest: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the k tokens of highest (or lowest) score in order of position."""
    index = topk_index(scores, k, largest)
    return gather_tokens(tokens, index), index


def topk_index(scores: Tensor, k: int, largest: bool) -> Tensor:
    """Return the places of the k highest (or lowest) scores, ascending, int64 [F, k]."""
    scores = torch.where(scores.isfinite(), scores, -torch.inf)
    order = torch.argsort(scores, dim=1, descending=largest, stable=True)
    return contiguous(order[:, :k].sort(dim=1).values)
