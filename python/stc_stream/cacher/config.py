"""How much a selective frame recomputes, and how often a frame is computed whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, get_args

Metric = Literal["cosine", "dot", "l1", "l2"]


@dataclass(frozen=True)
class CacherConfig:
    """Settings of a Cacher, checked when made (arXiv 2512.00891, STC-Cacher).

    Attributes:
        update_ratio: share of a selective frame's tokens that is recomputed, in (0, 1].
        refresh_interval: every so many frames of a stream one is computed whole and becomes the
            reference of those after it; at least 1, which computes every frame whole.
        metric: how a token's key is compared with the reference's: "cosine", "dot",
            "l1" (negative sum of absolute differences) or "l2" (negative distance).

    Raises:
        ValueError: a value out of range. TypeError: a value of another type.
    """

    update_ratio: float = 0.25
    refresh_interval: int = 4
    metric: Metric = "cosine"

    def __post_init__(self) -> None:
        if isinstance(self.update_ratio, bool) or not isinstance(self.update_ratio, Real):
            raise TypeError(f"update_ratio must be a number, but is {self.update_ratio!r}")
        if not 0 < self.update_ratio <= 1:
            raise ValueError(f"update_ratio must be in (0, 1], but is {self.update_ratio}")
        if isinstance(self.refresh_interval, bool) or not isinstance(
            self.refresh_interval, Integral
        ):
            raise TypeError(f"refresh_interval must be an int, but is {self.refresh_interval!r}")
        if self.refresh_interval < 1:
            raise ValueError(f"refresh_interval must be at least 1, but is {self.refresh_interval}")
        if self.metric not in get_args(Metric):
            raise ValueError(
                f"metric must be one of {', '.join(get_args(Metric))}, but is {self.metric!r}"
            )

    def updated_tokens(self, tokens: int) -> int:
        """Return k, the tokens of a frame of `tokens` that a selective frame recomputes.

        k = max(1, floor(tokens · update_ratio)), the product being the double that Python makes
        of the two.
        """
        return max(1, math.floor(tokens * self.update_ratio))
