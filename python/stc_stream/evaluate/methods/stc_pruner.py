"""The Pruner alone, behind a dense tower."""

from __future__ import annotations

from dataclasses import dataclass

from stc_stream.pruner import PrunerConfig


@dataclass(frozen=True)
class PrunerAlone:
    """STC-Pruner as the paper has it (arXiv 2512.00891), behind the tower as it is. Causal.

    Attributes:
        alpha, window: as in `PrunerConfig`.
        tokens_per_frame: tokens kept of each frame; None: a quarter.
    """

    alpha: float = 0.5
    window: int | None = None
    tokens_per_frame: int | None = None

    @property
    def pruner(self) -> PrunerConfig:
        """The Pruner's settings."""
        return PrunerConfig.paper(self.tokens_per_frame, alpha=self.alpha, window=self.window)


METHOD = PrunerAlone
