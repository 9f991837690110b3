"""The Cacher alone: every token goes on to the language model."""

from __future__ import annotations

from dataclasses import dataclass

from stc_stream.cacher import CacherConfig
from stc_stream.cacher.config import ReferenceKeys


@dataclass(frozen=True)
class CacherAlone:
    """A selective frame recomputes the tokens that changed most since the last refresh. Causal.

    Source: arXiv 2512.00891, STC-Cacher. The defaults also notice scene cuts, which the paper does
    not; `refresh_on_change=none` is its plain schedule.

    Attributes:
        update_ratio, refresh_interval, refresh_on_change, threshold, reference_keys: as in
            `CacherConfig`.
    """

    update_ratio: float = 0.25
    refresh_interval: int = 4
    refresh_on_change: float | None = 0.5
    threshold: float | None = None
    reference_keys: ReferenceKeys = "full"

    @property
    def tower(self) -> CacherConfig:
        """The Cacher's settings."""
        return CacherConfig(
            update_ratio=self.update_ratio,
            refresh_interval=self.refresh_interval,
            refresh_on_change=self.refresh_on_change,
            threshold=self.threshold,
            reference_keys=self.reference_keys,
        )


METHOD = CacherAlone
