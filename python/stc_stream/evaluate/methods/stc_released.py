"""Cacher and Pruner as the published code runs them."""

from __future__ import annotations

from dataclasses import dataclass

from stc_stream.cacher import CacherConfig
from stc_stream.pruner import PrunerConfig


@dataclass(frozen=True)
class ReleasedStc:
    """The published code's two parts together (arXiv 2512.00891): Gaussian scores, its history.

    Its temporal anchor holds the frames of the current call, and a session's calls are single
    frames: so it is causal here.

    Attributes:
        update_ratio, refresh_interval: as in `CacherConfig.paper`.
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
        ratio = 0.25 if self.tokens_per_frame is None else None
        return PrunerConfig.released(self.tokens_per_frame, ratio)


METHOD = ReleasedStc
