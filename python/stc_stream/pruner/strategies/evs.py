"""Efficient Video Sampling: tokens that differ from the same place in the frame before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import stc_kernels
from stc_stream.pruner.strategies.frame_change import likeness_to_frame_before, lists_of
from stc_stream.pruner.strategies.strategy import Kept, PruningStrategy


@dataclass(frozen=True)
class Evs(PruningStrategy):
    """Keeps the tokens of a whole clip that differ most from the frame before. Not causal.

    Efficient Video Sampling (arXiv 2510.14624) as vLLM ships it (`vllm/multimodal/evs.py`): of all
    tokens of a clip, those of lowest cosine with the same place in the frame before; the first
    frame counts as unlike anything and is kept whole. Frames keep different numbers, down to none:
    what is kept of a frame depends on later ones. Deviations: a clip is a call, so that a stream in
    several calls shares its tokens out in each; `budget` tokens a frame, where vLLM rounds the
    total down; a token whose cosine is not a number is kept last.
    """

    whole_calls = True

    def select(self, tokens: Tensor, past: Tensor | None, budget: int) -> tuple[Kept, Kept, Tensor]:
        frames, count = tokens.shape[:2]
        cosines, last = likeness_to_frame_before(tokens, past)
        order = cosines.nan_to_num(nan=torch.inf, neginf=-torch.inf).flatten()
        total = max(budget * frames, count if past is None else 0)
        chosen = torch.zeros(frames * count, dtype=torch.bool, device=tokens.device)
        chosen[order.argsort(stable=True)[:total]] = True
        kept, index = lists_of(tokens, [row.nonzero().flatten() for row in chosen.view(frames, -1)])
        return kept, index, last


@dataclass(frozen=True)
class EvsPerFrame(PruningStrategy):
    """Keeps the tokens of each frame that differ most from the frame before. Causal.

    The causal form of `Evs` (arXiv 2510.14624): as many tokens of each frame, those of lowest
    cosine with the same place in the frame before; a stream's first frame whole. Differential
    Token Drop with a relative threshold (arXiv 2504.17343, `drop_absolute=False` of its code)
    is the same rule. A token whose cosine is not a number is kept last.
    """

    def select(self, tokens: Tensor, past: Tensor | None, budget: int) -> tuple[Kept, Kept, Any]:
        cosines, last = likeness_to_frame_before(tokens, past)
        kept, index = stc_kernels.topk_gather(tokens, -cosines, budget)
        if past is not None or budget == tokens.shape[1]:
            return kept, index, last
        whole = torch.arange(tokens.shape[1], device=tokens.device)
        return [tokens[0], *kept[1:]], [whole, *index[1:]], last
