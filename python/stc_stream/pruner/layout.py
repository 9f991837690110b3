"""Frames whose patches lie in a square, each of its rows closed by a newline token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import stc_kernels
from stc_stream.pruner.selection import select
from stc_stream.pruner.strategies import Kept, PruningStrategy, ScoreStrategy
from stc_stream.pruner.strategies.anchored import keeps_highest_scores


def select_in_grid(
    strategy: PruningStrategy, tokens: Tensor, past: Any, budget: int, side: int, in_order: bool
) -> tuple[Kept, Kept, Any]:
    """Let a strategy choose among the patches, and keep the newline tokens beside them.

    Args:
        strategy: sees patches alone.
        tokens: [F, side · (side + 1), D].
        past, and the new one that is returned: of the strategy.
        budget: patches to keep of each frame.
        side: of the square of patches.
        in_order: whether rows ascend, or a frame's newline rows come after its patches.
    """
    patches = _patches(tokens, side)
    if in_order and keeps_highest_scores(strategy):
        assert isinstance(strategy, ScoreStrategy)
        # A newline token is like a patch that nothing is more novel than: one gather takes both.
        novelty, past = strategy.scores(patches, past)
        highest = torch.finfo(torch.float32).max
        rows = novelty.new_full((len(tokens), side, side + 1), highest)
        lower = novelty.where(novelty.isfinite(), -torch.inf).clamp(max=highest / 2)
        rows[:, :, :side] = lower.unflatten(1, (side, side))
        kept, index = stc_kernels.topk_gather(tokens, rows.flatten(1), budget + side)
        return kept, index, past
    chosen, places, past = select(strategy, patches, past, budget)
    newlines = torch.arange(side, device=tokens.device) * (side + 1) + side
    if isinstance(places, Tensor):
        assert isinstance(chosen, Tensor)
        kept, index = _with_newlines(chosen, places, tokens, newlines, in_order)
        return kept, index, past
    each = [
        _with_newlines(chosen[f][None], places[f][None], tokens[f : f + 1], newlines, in_order)
        for f in range(len(tokens))
    ]
    return [kept[0] for kept, _ in each], [index[0] for _, index in each], past


def _patches(tokens: Tensor, side: int) -> Tensor:
    """Leave the newline rows out: [F, s(s + 1), D] to [F, s², D]."""
    patches: Tensor = tokens.unflatten(1, (side, side + 1))[:, :, :side].flatten(1, 2)
    return patches


def _with_newlines(
    kept: Tensor, places: Tensor, tokens: Tensor, newlines: Tensor, in_order: bool
) -> tuple[Tensor, Tensor]:
    """Turn places among the patches into rows of the frame, and add the newline tokens."""
    frames, side = len(places), len(newlines)
    rows = torch.cat([places + places // side, newlines.expand(frames, side)], dim=1)
    both = torch.cat([kept, tokens[:, newlines]], dim=1)
    if not in_order:
        return both, rows
    order = rows.argsort(dim=1)
    return stc_kernels.gather_tokens(both, order), rows.gather(1, order)
