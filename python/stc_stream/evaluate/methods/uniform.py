"""Evenly spaced tokens of each frame, whatever they show."""

from __future__ import annotations

from dataclasses import dataclass

from stc_stream.evaluate.method import pruner_by
from stc_stream.pruner import PrunerConfig, Uniform


@dataclass(frozen=True)
class UniformTokens:
    """Evenly spaced tokens of each frame, the same places always. Causal; no paper.

    Attributes:
        tokens_per_frame: tokens kept of each frame; None: a quarter.
    """

    tokens_per_frame: int | None = None

    @property
    def pruner(self) -> PrunerConfig:
        """The rule and its budget."""
        return pruner_by(Uniform(), self.tokens_per_frame)


METHOD = UniformTokens
