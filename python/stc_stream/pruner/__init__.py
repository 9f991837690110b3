"""The Pruner: of each frame's tokens, the most novel go on to the LLM (algorithm.md, 2)."""

from __future__ import annotations

from stc_stream.pruner.config import PrunerConfig
from stc_stream.pruner.pruner import PrunedTokens, TokenPruner

__all__ = ["PrunedTokens", "PrunerConfig", "TokenPruner"]
