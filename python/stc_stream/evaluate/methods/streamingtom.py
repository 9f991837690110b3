"""StreamingTOM's token reduction: what changed by attention, what stayed by clusters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from stc_stream.evaluate.attention import AttentionRecorder
from stc_stream.evaluate.method import pruner_by
from stc_stream.pruner import PrunerConfig, StreamingTom


@dataclass(frozen=True)
class TemporalReduction:
    """Causal Temporal Reduction (StreamingTOM, arXiv 2510.18269), by the last layer's attention.

    The paper keeps 50 of 196. Its cache of 4 bits and its retrieval are not part of this. Causal.

    Attributes:
        threshold, neighbours, beta: as in `StreamingTom`.
        tokens_per_frame: tokens kept of each frame, merged ones included; None: a quarter.
    """

    threshold: float = 0.9
    neighbours: int = 7
    beta: float = 0.6
    tokens_per_frame: int | None = None

    @cached_property
    def tower(self) -> AttentionRecorder:
        """The dense tower, with its attention."""
        return AttentionRecorder(layer=-1)

    @property
    def pruner(self) -> PrunerConfig:
        """The rule and its budget."""
        rule = StreamingTom(self.tower, self.threshold, self.neighbours, self.beta)
        return pruner_by(rule, self.tokens_per_frame)


METHOD = TemporalReduction
