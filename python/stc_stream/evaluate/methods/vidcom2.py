"""VidCom²: outliers of the whole video."""

from __future__ import annotations

from dataclasses import dataclass

from stc_stream.evaluate.method import pruner_by
from stc_stream.pruner import PrunerConfig, VidCom2


@dataclass(frozen=True)
class VideoOutliers:
    """VidCom² (arXiv 2505.14454): tokens unlike the video's and their frame's mean. Not causal.

    Attributes:
        tokens_per_frame: tokens kept of each frame; None: a quarter.
    """

    tokens_per_frame: int | None = None

    @property
    def pruner(self) -> PrunerConfig:
        """The rule and its budget."""
        return pruner_by(VidCom2(), self.tokens_per_frame)


METHOD = VideoOutliers
