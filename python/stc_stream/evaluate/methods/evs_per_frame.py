"""EVS with as many tokens of every frame: its causal form."""

from __future__ import annotations

from dataclasses import dataclass

from stc_stream.evaluate.method import pruner_by
from stc_stream.pruner import EvsPerFrame, PrunerConfig


@dataclass(frozen=True)
class FrameSampling:
    """Efficient Video Sampling (arXiv 2510.14624) frame by frame. Causal.

    Attributes:
        tokens_per_frame: tokens kept of each frame; None: a quarter.
    """

    tokens_per_frame: int | None = None

    @property
    def pruner(self) -> PrunerConfig:
        """The rule and its budget."""
        return pruner_by(EvsPerFrame(), self.tokens_per_frame)


METHOD = FrameSampling
