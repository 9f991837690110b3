"""VidCom²: outliers of the video and of their frame, and more of frames that stand out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import stc_kernels
from stc_stream.pruner.strategies.frame_change import lists_of
from stc_stream.pruner.strategies.strategy import Kept, PruningStrategy
from stc_stream.ratios import truncated_share_of

_VARIANCES = (1 / 8, 1 / 4, 1 / 2, 1, 2)
_TEMPERATURE = 0.01


@dataclass(frozen=True)
class VidCom2(PruningStrategy):
    """Keeps the tokens least like the video's and their frame's mean. Not causal.

    VidCom² (arXiv 2505.14454). Tokens are normalised over the quieter half of their channels (of
    lowest variance over the video); a token's likeness to a mean is the sum over a of
    exp(−‖x − mean‖² / 2a), a = 1/8, 1/4, 1/2, 1, 2; kept are the tokens of lowest likeness to the
    video's mean and to their frame's, added. A frame keeps the share r · (1 + p − mean p) of its
    tokens, at most all and at least one, with p the softmax over frames of the negative mean
    likeness to the video, at temperature 0.01: frames that stand out keep more. The video is a
    call, and nothing is remembered: what is kept of a frame depends on later ones.

    Deviations from the published code: `r` is `budget` over the tokens of a frame; at r = 1 all are
    kept, where the code drops some of frames that don't stand out; a token whose likeness is not a
    number is in no mean, and kept last; sums in float32.
    """

    whole_calls = True

    def select(self, tokens: Tensor, past: Any, budget: int) -> tuple[Kept, Kept, Any]:
        count, width = tokens.shape[1:]
        channels = stc_kernels.quiet_channels(tokens, truncated_share_of(width, 0.5))
        unit = F.normalize(tokens[:, :, channels].float(), dim=-1)
        # A token that is not finite is in no mean.
        to_video = _likeness(unit, unit.nanmean(dim=(0, 1), keepdim=True))
        to_frame = _likeness(unit, unit.nanmean(dim=1, keepdim=True))
        apart = (-to_video.nanmean(dim=1) / _TEMPERATURE).nan_to_num(nan=-torch.inf)
        standing_out = torch.softmax(apart, dim=0).nan_to_num()
        shares = budget / count * (1 + standing_out - standing_out.mean())
        counts = (shares * count).round().clamp(count if budget == count else 1, count)
        # Also where what is not finite lies in another channel.
        likeness = (to_video + to_frame).where(tokens.isfinite().all(dim=-1), torch.inf)
        order = likeness.nan_to_num(torch.inf).argsort(dim=1, stable=True)
        index = [
            row[: int(own)].sort().values for row, own in zip(order, counts.tolist(), strict=True)
        ]
        kept, places = lists_of(tokens, index)
        return kept, places, None


def _likeness(unit: Tensor, mean: Tensor) -> Tensor:
    """Return how much kernels around a mean reach each token, float32 [F, T]."""
    apart = (unit - mean).square().sum(dim=-1)
    kernels = [(-apart / (2 * variance)).exp() for variance in _VARIANCES]
    return torch.stack(kernels).sum(dim=0)
