"""How novelty is scored and how many tokens of a frame are kept."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from stc_stream.pruner.checks import check_choice, check_count, check_share
from stc_stream.pruner.strategies import DualAnchor, Gaussian, PruningStrategy
from stc_stream.pruner.strategies.gaussian import History
from stc_stream.ratios import share_of, truncated_share_of

Strategy = Literal["dual_anchor", "gaussian"]
Layout = Literal["flat", "grid"]

_OF_NAMED_STRATEGIES = ("alpha", "window", "channel_keep_ratio", "history")


@dataclass(frozen=True)
class PrunerConfig:
    """Settings of a `TokenPruner`, checked when made; `paper` and `released` are the two presets.

    Attributes:
        strategy: "dual_anchor" (arXiv 2512.00891, STC-Pruner), "gaussian" (the published code), or
            a `PruningStrategy` of one's own: any object with `select`. Such an object has its own
            settings, so that `alpha`, `window`, `channel_keep_ratio` and `history` are left out.
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

    strategy: Strategy | PruningStrategy = "dual_anchor"
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
        self._check_strategy()
        check_choice("layout", self.layout, get_args(Layout))
        check_choice("history", self.history, get_args(History))
        DualAnchor(self.alpha)
        Gaussian(self.channel_keep_ratio)
        if (self.tokens_per_frame is None) == (self.keep_ratio is None):
            raise ValueError(
                "one of tokens_per_frame and keep_ratio must be given, but tokens_per_frame is "
                f"{self.tokens_per_frame} and keep_ratio is {self.keep_ratio}"
            )
        if self.keep_ratio is not None:
            check_share("keep_ratio", self.keep_ratio)
        check_count("tokens_per_frame", self.tokens_per_frame)
        check_count("window", self.window)
        if self.history == "released" and (self.strategy != "gaussian" or self.window is not None):
            raise ValueError(
                "history 'released' must have strategy 'gaussian' and no window, but strategy is "
                f"{self.strategy!r} and window is {self.window}"
            )

    def kept_tokens(self, tokens: int) -> int:
        """Return k, how many of a frame's `tokens` (in "grid", of its patches) are kept.

        With `keep_ratio`, max(1, floor(tokens · keep_ratio)), the ratio being the decimal that was
        written; under the "released" history the double that Python makes of the two, as there.
        A strategy of one's own may take it for its mean, or its most.
        """
        if self.keep_ratio is not None:
            count = truncated_share_of if self.history == "released" else share_of
            return count(tokens, self.keep_ratio)
        assert self.tokens_per_frame is not None
        return self.tokens_per_frame

    @property
    def strategy_name(self) -> str:
        """What reports call the strategy: its name, or the class of an object."""
        return self.strategy if isinstance(self.strategy, str) else type(self.strategy).__name__

    def make_strategy(self) -> PruningStrategy:
        """Return what chooses the tokens."""
        if self.strategy == "dual_anchor":
            return DualAnchor(self.alpha, self.window)
        if self.strategy == "gaussian":
            return Gaussian(self.channel_keep_ratio, self.window, self.history)
        return self.strategy

    def _check_strategy(self) -> None:
        strategy = self.strategy
        if isinstance(strategy, str):
            check_choice("strategy", strategy, get_args(Strategy))
            return
        if isinstance(strategy, type) or not callable(getattr(strategy, "select", None)):
            raise TypeError(
                f"strategy must be one of {', '.join(get_args(Strategy))}, or an object with "
                f"select(tokens, past, budget), but is {strategy!r}"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _OF_NAMED_STRATEGIES and value != field.default:
                raise ValueError(
                    f"{field.name} is a setting of the strategies that have a name, but is {value} "
                    f"beside {strategy!r}: leave it out"
                )
