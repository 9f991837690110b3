"""Random tokens: the control that every choice must beat."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

import stc_kernels
from stc_stream.pruner.strategies.strategy import Kept, PruningStrategy


@dataclass(frozen=True)
class Random(PruningStrategy):
    """Keeps random tokens, drawn anew for each frame. Causal; no paper, a baseline.

    What is drawn for a frame follows from the seed and the frame's number in its stream alone: two
    streams of equal length get equal draws. Its past is that number.

    Attributes:
        seed: of the draws.
    """

    seed: int = 0

    def select(self, tokens: Tensor, past: int | None, budget: int) -> tuple[Kept, Kept, int]:
        frames, count = tokens.shape[:2]
        first = past or 0
        draws = [self._draw(number, count, budget) for number in range(first, first + frames)]
        index = torch.tensor(draws, dtype=torch.int64, device=tokens.device)
        return stc_kernels.gather_tokens(tokens, index), index, first + frames

    def _draw(self, frame: int, tokens: int, budget: int) -> list[int]:
        # A seed of text is hashed whole, so that neighbours in number are no neighbours in draws.
        return sorted(random.Random(f"{self.seed} {frame}").sample(range(tokens), budget))
