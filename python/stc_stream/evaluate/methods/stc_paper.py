"""Cacher and Pruner as the paper has them together."""

from __future__ import annotations

from dataclasses import dataclass

from stc_stream.cacher import CacherConfig
from stc_stream.pruner import PrunerConfig


@dataclass(frozen=True)
class PaperStc:
    """The paper's two parts together (arXiv 2512.00891): its plain schedule, dual anchors. Causal.

    Attributes:
        update_ratio, refresh_interval: as in `CacherConfig.paper`; with the Pruner, the paper
            refreshes every second frame.
        tokens_per_frame: tokens that the Pruner keeps; None: a quarter.
    """

    update_ratio: float = 0.25
    refresh_interval: int = 2
    tokens_per_frame: int | None = None

    @property
    def tower(self) -> CacherConfig:
        """The Cacher's settings."""
        return CacherConfig.paper(self.update_ratio, self.refresh_interval)

    @property
    def pruner(self) -> PrunerConfig:
        """The Pruner's settings."""
        return PrunerConfig.paper(self.tokens_per_frame)


METHOD = PaperStc
