"""DTD of TimeChat-Online: a token is dropped while it stays as it was."""

from __future__ import annotations

from dataclasses import dataclass

from stc_stream.pruner import Dtd, PrunerConfig


@dataclass(frozen=True)
class TokenDrop:
    """Differential Token Drop (arXiv 2504.17343): no budget, a threshold. Causal.

    Attributes:
        threshold: cosine with the same place in the frame before above which a token is dropped.
    """

    threshold: float = 0.5

    @property
    def pruner(self) -> PrunerConfig:
        """The rule, with no other limit."""
        return PrunerConfig(strategy=Dtd(self.threshold), keep_ratio=1.0)


METHOD = TokenDrop
