"""VisionZip: the tokens that are attended to, and the rest merged into a few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stc_stream.pruner.strategies.attention import AttentionSource
from stc_stream.pruner.strategies.strategy import Kept, PruningStrategy

_CONTEXTUAL, _OF = 10, 64


@dataclass(frozen=True)
class VisionZip(PruningStrategy):
    """Keeps the tokens most attended to, and merges the others into evenly spaced ones. Causal.

    VisionZip (arXiv 2412.04467), a frame at a time. 54 of 64 are *dominant*: those to which the
    class token attends most, or which receive most attention where there is none, in the layer
    before the tower's last. The rest is *contextual*: of the other tokens, in order, every n-th is
    a target, n such that there are as many as places are left; each of the others goes into the
    target of the most similar key (cosine), and a target becomes the mean of what went into it and
    itself.

    Deviations: it sees tokens after projector and pooling, with attention and keys pooled alike,
    where the published code selects before the projector; tokens stay in order of position, each
    merged one at its target's place, where the code puts the merged ones last; no class token is
    kept; a token that is not finite is kept last, and goes into none.

    Attributes:
        attention: of the layer before the last, recorded in the tower.
    """

    attention: AttentionSource

    def select(self, tokens: Tensor, past: Any, budget: int) -> tuple[Kept, Kept, Any]:
        frames, count, _ = tokens.shape
        attention = self.attention.take(frames, count)
        finite = tokens.isfinite().all(dim=-1)
        merged = budget * _CONTEXTUAL // _OF
        attended = attention.from_class.where(finite, -torch.inf).nan_to_num(-torch.inf)
        order = attended.argsort(dim=1, descending=True, stable=True)
        dominant, rest = order[:, : budget - merged], order[:, budget - merged :].sort().values
        if not merged:
            index = dominant.sort().values
            return _rows(tokens, index), index, None
        step = max(1, rest.shape[1] // merged)
        is_target = torch.zeros(rest.shape[1], dtype=torch.bool, device=tokens.device)
        is_target[: merged * step : step] = True
        targets, others = rest[:, is_target], rest[:, ~is_target]
        keys = F.normalize(attention.keys, dim=-1)
        likeness = _rows(keys, others) @ _rows(keys, targets).mT
        into = F.one_hot(likeness.argmax(dim=-1), merged).to(torch.float32)
        into = into * finite.gather(1, others)[..., None]
        sums = into.mT @ _rows(tokens, others).float().nan_to_num(0, 0, 0)
        own = _rows(tokens, targets).float()
        means = (own + sums) / (1 + into.sum(dim=1))[..., None]
        index, places = torch.cat([dominant, targets], dim=1).sort(dim=1)
        both = torch.cat([_rows(tokens, dominant), means.to(tokens.dtype)], dim=1)
        return _rows(both, places), index, None


def _rows(tokens: Tensor, index: Tensor) -> Tensor:
    """Return the rows at places of each frame, [F, T, C] and [F, k] to [F, k, C]."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
