"""How novelty is scored and how many tokens of a frame are kept."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args

from stc_stream.ratios import share_of

Strategy = Literal["dual_anchor", "gaussian"]
Layout = Literal["flat", "grid"]
History = Literal["causal", "released"]


@dataclass(frozen=True)
class PrunerConfig:
    """Settings of a `TokenPruner`, checked when made; `paper` and `released` are the two presets.

    Attributes:
        strategy: "dual_anchor" (arXiv 2512.00891, STC-Pruner) or "gaussian" (the published code).
        alpha: weight of the temporal anchor against the spatial one in "dual_anchor", in [0, 1].
        tokens_per_frame: tokens kept of each frame; this or `keep_ratio` is given, not both.
        keep_ratio: share of each frame's tokens that is kept, in (0, 1].
        window: past frames the temporal anchor is the mean of; None: all of them.
        channel_keep_ratio: share of the channels that "gaussian" looks at, in (0, 1]: those of
            lowest variance over a call's tokens.
        layout: "flat", every row is a token; "grid", a square of patches, each of its rows closed
            by a newline token that is always kept and not counted (LLaVA-Video: 13 × 13 patches,
            182 rows).
        history: "causal", the mean of past frames, in all channels; "released", the published
            code's: one mean a call, the current call's included, over channels in order of
            variance. That order differs from call to call, so that different channels are
            averaged: a fault, kept only to reproduce published numbers.

    Raises:
        ValueError: a value out of range, or values that exclude each other.
        TypeError: a value of another type.
    """

    strategy: Strategy = "dual_anchor"
    alpha: float = 0.5
    tokens_per_frame: int | None = None
    keep_ratio: float | None = None
    window: int | None = None
    channel_keep_ratio: float = 0.5
    layout: Layout = "flat"
    history: History = "causal"

    @classmethod
    def paper(
        cls, tokens_per_frame: int | None = None, keep_ratio: float | None = None, **settings: Any
    ) -> PrunerConfig:
        """Return the paper's settings: dual anchors, α 0.5, past frames only; 25% are kept."""
        if tokens_per_frame is None and keep_ratio is None:
            keep_ratio = 0.25
        return cls(tokens_per_frame=tokens_per_frame, keep_ratio=keep_ratio, **settings)

    @classmethod
    def released(
        cls, tokens_per_frame: int | None = None, keep_ratio: float | None = None, **settings: Any
    ) -> PrunerConfig:
        """Return the published code's settings, token for token; 64 tokens a frame are kept."""
        if tokens_per_frame is None and keep_ratio is None:
            tokens_per_frame = 64
        return cls(
            strategy="gaussian",
            history="released",
            tokens_per_frame=tokens_per_frame,
            keep_ratio=keep_ratio,
            **settings,
        )

    def __post_init__(self) -> None:
        _choice("strategy", self.strategy, get_args(Strategy))
        _choice("layout", self.layout, get_args(Layout))
        _choice("history", self.history, get_args(History))
        _number("alpha", self.alpha)
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], but is {self.alpha}")
        _share("channel_keep_ratio", self.channel_keep_ratio)
        if (self.tokens_per_frame is None) == (self.keep_ratio is None):
            raise ValueError(
                "one of tokens_per_frame and keep_ratio must be given, but tokens_per_frame is "
                f"{self.tokens_per_frame} and keep_ratio is {self.keep_ratio}"
            )
        if self.keep_ratio is not None:
            _share("keep_ratio", self.keep_ratio)
        _count("tokens_per_frame", self.tokens_per_frame)
        _count("window", self.window)
        if self.history == "released" and (self.strategy != "gaussian" or self.window is not None):
            raise ValueError(
                "history 'released' must have strategy 'gaussian' and no window, but strategy is "
                f"{self.strategy!r} and window is {self.window}"
            )

    def kept_tokens(self, tokens: int) -> int:
        """Return k, how many of a frame's `tokens` (in "grid", of its patches) are kept.

        With `keep_ratio`, max(1, floor(tokens · keep_ratio)), the ratio being the decimal that was
        written; under the "released" history the double that Python makes of the two, as there.
        """
        if self.keep_ratio is not None:
            return self._share(tokens, self.keep_ratio)
        assert self.tokens_per_frame is not None
        return self.tokens_per_frame

    def scored_channels(self, channels: int) -> int:
        """Return how many of so many channels "gaussian" looks at, counted likewise."""
        return self._share(channels, self.channel_keep_ratio)

    def _share(self, count: int, ratio: float) -> int:
        if self.history == "released":
            return max(1, int(count * ratio))
        return share_of(count, ratio)


def _choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, but is {value!r}")


def _number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, but is {value!r}")


def _share(name: str, value: float) -> None:
    _number(name, value)
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be in (0, 1], but is {value}")


def _count(name: str, value: int | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, but is {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, but is {value}")
