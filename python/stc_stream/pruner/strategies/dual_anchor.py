"""The paper's rule: unlike the mean of past frames, and unlike the frame's own mean."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stc_stream.pruner.checks import check_count, check_number
from stc_stream.pruner.strategies.anchored import (
    Anchored,
    AnchoredStrategy,
    after_the_first,
    frame_means,
)
from stc_stream.pruner.strategies.anchors import FrameHistory


@dataclass(frozen=True)
class DualAnchor(AnchoredStrategy):
    """Novelty is the distance to a temporal and a spatial anchor (arXiv 2512.00891, STC-Pruner).

    Its past is a running sum of the frames' means, or the last `window` means.

    Attributes:
        alpha: weight of the temporal anchor against the spatial one, in [0, 1].
        window: past frames that the temporal anchor is the mean of; None: all of them.

    Raises:
        ValueError: a value out of range.
        TypeError: a value of another type.
    """

    alpha: float = 0.5
    window: int | None = None

    op_strategy = "dual_anchor"

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha)
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], but is {self.alpha}")
        check_count("window", self.window)

    def anchored(
        self, tokens: Tensor, past: FrameHistory | None
    ) -> tuple[list[Anchored], FrameHistory]:
        seen = past or FrameHistory.empty(tokens.shape[2], tokens.device)
        anchors, after = seen.advance(frame_means(tokens), self.window)
        return after_the_first(tokens, anchors, past is None), after
