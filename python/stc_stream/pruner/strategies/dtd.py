"""Differential Token Drop: tokens that are no longer like those of the frame before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stc_stream.pruner.checks import check_number
from stc_stream.pruner.strategies.frame_change import likeness_to_frame_before, lists_of
from stc_stream.pruner.strategies.strategy import Kept, PruningStrategy


@dataclass(frozen=True)
class Dtd(PruningStrategy):
    """Drops a token that is like the one at its place in the frame before. Causal.

    Differential Token Drop on features (TimeChat-Online, arXiv 2504.17343): dropped where the
    cosine exceeds `threshold`; a stream's first frame is kept whole. The frame before is the one
    that came before, kept or not: what changes slowly is never kept. Efficient Video Sampling
    (arXiv 2510.14624) with a threshold instead of a budget is this rule. Deviations: the paper's
    other form, on pixels, is not here, for a pruner sees none; of more changed tokens than the
    budget, which is the most that a later frame keeps, the most changed are kept; a token whose
    cosine is not a number is dropped.

    Attributes:
        threshold: cosine above which a token is dropped, −1 to 1; 1 keeps all. The published
            scripts have 0.5, 0.25 for the demonstration.

    Raises:
        ValueError: a threshold out of range.
        TypeError: no number.
    """

    threshold: float = 0.5

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold)
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold must be in [-1, 1], but is {self.threshold}")

    def select(self, tokens: Tensor, past: Tensor | None, budget: int) -> tuple[Kept, Kept, Tensor]:
        cosines, last = likeness_to_frame_before(tokens, past)
        # Not a number is never at most the threshold.
        counts = (cosines <= self.threshold).sum(1).clamp(max=budget).tolist()
        if past is None:
            counts[0] = tokens.shape[1]
        order = cosines.nan_to_num(nan=torch.inf).argsort(dim=1, stable=True)
        index = [row[:count].sort().values for row, count in zip(order, counts, strict=True)]
        kept, places = lists_of(tokens, index)
        return kept, places, last
