"""Random tokens of each frame: the control for rules that choose."""

from __future__ import annotations

from dataclasses import dataclass

from stc_stream.evaluate.method import pruner_by
from stc_stream.pruner import PrunerConfig, Random


@dataclass(frozen=True)
class RandomDropping:
    """Random tokens of each frame. Causal; no paper.

    Attributes:
        seed: of the draws.
        tokens_per_frame: tokens kept of each frame; None: a quarter.
    """

    seed: int = 0
    tokens_per_frame: int | None = None

    @property
    def pruner(self) -> PrunerConfig:
        """The rule and its budget."""
        return pruner_by(Random(self.seed), self.tokens_per_frame)


METHOD = RandomDropping
