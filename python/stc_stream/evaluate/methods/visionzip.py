"""VisionZip: the tokens that are attended to, and the rest merged into a few."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from stc_stream.evaluate.attention import AttentionRecorder
from stc_stream.evaluate.method import pruner_by
from stc_stream.pruner import PrunerConfig, VisionZip


@dataclass(frozen=True)
class AttendedTokens:
    """VisionZip (arXiv 2412.04467), by attention in the layer before the last. Causal.

    Attributes:
        tokens_per_frame: tokens kept of each frame, merged ones included; None: a quarter.
    """

    tokens_per_frame: int | None = None

    @cached_property
    def tower(self) -> AttentionRecorder:
        """The dense tower, with its attention."""
        return AttentionRecorder(layer=-2)

    @property
    def pruner(self) -> PrunerConfig:
        """The rule and its budget."""
        return pruner_by(VisionZip(self.tower), self.tokens_per_frame)


METHOD = AttendedTokens
