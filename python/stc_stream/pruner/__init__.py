"""The Pruner: of each frame's tokens, the most novel go on to the LLM (algorithm.md, 2)."""

from __future__ import annotations

from stc_stream.pruner.config import PrunerConfig
from stc_stream.pruner.pruner import PrunedTokens, TokenPruner
from stc_stream.pruner.strategies import (
    Dtd,
    DualAnchor,
    Evs,
    EvsPerFrame,
    Gaussian,
    PruningStrategy,
    Random,
    ScoreStrategy,
    StreamingTom,
    Uniform,
    VidCom2,
    VisionZip,
)

__all__ = [
    "Dtd",
    "DualAnchor",
    "Evs",
    "EvsPerFrame",
    "Gaussian",
    "PrunedTokens",
    "PrunerConfig",
    "PruningStrategy",
    "Random",
    "ScoreStrategy",
    "StreamingTom",
    "TokenPruner",
    "Uniform",
    "VidCom2",
    "VisionZip",
]
