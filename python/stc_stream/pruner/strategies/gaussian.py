"""The published code's rule: kernels around both anchors, over the quietest channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

import stc_kernels
from stc_stream.pruner.checks import check_choice, check_count, check_share
from stc_stream.pruner.strategies.anchored import (
    Anchored,
    AnchoredStrategy,
    after_the_first,
    frame_means,
)
from stc_stream.pruner.strategies.anchors import CallHistory, FrameHistory
from stc_stream.ratios import share_of, truncated_share_of

History = Literal["causal", "released"]


@dataclass(frozen=True)
class Gaussian(AnchoredStrategy):
    """Novelty is how little Gaussian kernels around both anchors reach a token.

    Source: the code published with arXiv 2512.00891. It looks at the channels of lowest variance
    over the tokens of a call, so that frames at once and one by one may keep other tokens.

    Attributes:
        channel_keep_ratio: share of the channels that it looks at, in (0, 1].
        window: past frames that the temporal anchor is the mean of; None: all of them.
        history: "causal", the mean of past frames, in all channels; "released", the published
            code's: one mean a call, the current call's included, over channels in order of
            variance. That order differs from call to call, so that different channels are
            averaged: a fault, kept only to reproduce published numbers.

    Raises:
        ValueError: a value out of range, a window with the "released" history.
        TypeError: a value of another type.
    """

    channel_keep_ratio: float = 0.5
    window: int | None = None
    history: History = "causal"

    op_strategy = "gaussian"
    alpha = 0.5

    def __post_init__(self) -> None:
        check_share("channel_keep_ratio", self.channel_keep_ratio)
        check_count("window", self.window)
        check_choice("history", self.history, get_args(History))
        if self.history == "released" and self.window is not None:
            raise ValueError(f"history 'released' must have no window, but window is {self.window}")

    def scored_channels(self, channels: int) -> int:
        """Return how many of the channels it looks at, at least one."""
        count = truncated_share_of if self.history == "released" else share_of
        return count(channels, self.channel_keep_ratio)

    def anchored(
        self, tokens: Tensor, past: FrameHistory | CallHistory | None
    ) -> tuple[list[Anchored], FrameHistory | CallHistory]:
        width = tokens.shape[2]
        channels = stc_kernels.quiet_channels(tokens, self.scored_channels(width))
        means = frame_means(tokens)
        if self.history == "released":
            calls = (
                past
                if isinstance(past, CallHistory)
                else CallHistory.empty(len(channels), tokens.device)
            )
            anchor, history = calls.advance(means.mean(dim=0)[channels])
            return [Anchored(tokens, anchor, channels)], history
        seen = past if isinstance(past, FrameHistory) else FrameHistory.empty(width, tokens.device)
        anchors, after = seen.advance(means, self.window)
        return after_the_first(tokens, anchors[:, channels], past is None, channels), after
