"""EVS as vLLM ships it: what changed, over the whole video."""

from __future__ import annotations

from dataclasses import dataclass

from stc_stream.evaluate.method import pruner_by
from stc_stream.pruner import Evs, PrunerConfig


@dataclass(frozen=True)
class VideoSampling:
    """Efficient Video Sampling (arXiv 2510.14624), the whole video at once. Not causal.

    Attributes:
        tokens_per_frame: tokens kept of each frame; None: a quarter.
    """

    tokens_per_frame: int | None = None

    @property
    def pruner(self) -> PrunerConfig:
        """The rule and its budget."""
        return pruner_by(Evs(), self.tokens_per_frame)


METHOD = VideoSampling
