"""The Pruner: of each frame's tokens, the most novel go on to the LLM (algorithm.md, 2)."""

from __future__ import annotations

from stc_stream.pruner.config import PrunerConfig
from stc_stream.pruner.pruner import PrunedTokens, TokenPruner
from stc_stream.pruner.strategies import DualAnchor, Gaussian, PruningStrategy, ScoreStrategy

__all__ = [
    "DualAnchor",
    "Gaussian",
    "PrunedTokens",
    "PrunerConfig",
    "PruningStrategy",
    "ScoreStrategy",
    "TokenPruner",
]
