"""What the two rules of STC-Pruner share: anchors, and the op that scores and keeps at once."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

import stc_kernels
from stc_stream.pruner.strategies.strategy import Kept, PruningStrategy, ScoreStrategy


@dataclass(frozen=True, eq=False)
class Anchored:
    """Frames, and what their novelty is held against.

    Attributes:
        frames: [F, T, D].
        temporal_anchor, channels: as in `stc_kernels.anchor_scores`; None: no past, all channels.
    """

    frames: Tensor
    temporal_anchor: Tensor | None
    channels: Tensor | None = None


class AnchoredStrategy(ScoreStrategy):
    """Scores tokens against a temporal and a spatial anchor."""

    scores_frames_together = True
    op_strategy: ClassVar[str]
    """What `stc_kernels.anchor_scores` calls the score."""
    alpha: float

    @abstractmethod
    def anchored(self, tokens: Tensor, past: Any) -> tuple[list[Anchored], Any]:
        """Return a call's frames in runs, each with its anchors, and the new past."""

    def score(self, tokens: Tensor, past: Any) -> tuple[Tensor, Any]:
        runs, past = self.anchored(tokens, past)
        found = [
            stc_kernels.anchor_scores(
                run.frames, run.temporal_anchor, self.op_strategy, self.alpha, run.channels
            )
            for run in runs
        ]
        return _joined(found), past

    def select(self, tokens: Tensor, past: Any, budget: int) -> tuple[Kept, Kept, Any]:
        runs, past = self.anchored(tokens, past)
        found = [
            stc_kernels.prune_tokens(
                run.frames, budget, run.temporal_anchor, self.op_strategy, self.alpha, run.channels
            )
            for run in runs
        ]
        return _joined([kept for kept, _ in found]), _joined([index for _, index in found]), past


def keeps_highest_scores(strategy: PruningStrategy) -> bool:
    """Tell whether a strategy keeps the tokens of highest `scores`, chosen by one of these ops."""
    known = (ScoreStrategy.select, AnchoredStrategy.select)
    return isinstance(strategy, ScoreStrategy) and type(strategy).select in known


def frame_means(tokens: Tensor) -> Tensor:
    """Return the mean token of each frame, float32 [F, D]."""
    with torch.no_grad():
        return tokens.mean(dim=1, dtype=torch.float32)


def after_the_first(
    tokens: Tensor, anchors: Tensor, is_new: bool, channels: Tensor | None = None
) -> list[Anchored]:
    """Return frames with their anchors; a stream's first has no past to be held against."""
    if not is_new:
        return [Anchored(tokens, anchors, channels)]
    runs = [Anchored(tokens[:1], None, channels)]
    if len(tokens) > 1:
        runs.append(Anchored(tokens[1:], anchors[1:], channels))
    return runs


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
