"""Streaming Token Compression: the Cacher in the tower, the Pruner after it."""

from __future__ import annotations

from dataclasses import dataclass

from stc_stream.evaluate.methods.stc_cacher import CacherAlone
from stc_stream.pruner import PrunerConfig


@dataclass(frozen=True)
class Stc(CacherAlone):
    """The Cacher of `stc_cacher`, with its defaults, and the Pruner behind it. Causal.

    Source: arXiv 2512.00891.

    Attributes:
        tokens_per_frame: tokens that the Pruner keeps (`PrunerConfig.paper`); None: a quarter.
    """

    tokens_per_frame: int | None = None

    @property
    def pruner(self) -> PrunerConfig:
        """The Pruner's settings."""
        return PrunerConfig.paper(self.tokens_per_frame)


METHOD = Stc
