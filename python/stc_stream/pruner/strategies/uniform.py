"""Evenly spaced tokens: what costs nothing to choose, and what a choice must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import stc_kernels
from stc_stream.pruner.strategies.strategy import Kept, PruningStrategy


@dataclass(frozen=True)
class Uniform(PruningStrategy):
    """Keeps evenly spaced tokens, the same places of every frame. Causal; no paper, a baseline.

    Of k tokens the i-th is at place floor((i + 1/2) · T / k). Places are counted row by row: they
    are evenly spaced in that order, not in the picture.
    """

    def select(self, tokens: Tensor, past: Any, budget: int) -> tuple[Kept, Kept, Any]:
        frames, count = tokens.shape[:2]
        rank = torch.arange(budget, device=tokens.device)
        index = ((2 * rank + 1) * count // (2 * budget)).repeat(frames, 1)
        return stc_kernels.gather_tokens(tokens, index), index, None
