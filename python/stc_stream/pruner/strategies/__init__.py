"""Rules that choose which tokens of a frame go on to the LLM: one file each."""

from __future__ import annotations

from stc_stream.pruner.strategies.dual_anchor import DualAnchor
from stc_stream.pruner.strategies.gaussian import Gaussian
from stc_stream.pruner.strategies.strategy import Kept, PruningStrategy, ScoreStrategy

__all__ = ["DualAnchor", "Gaussian", "Kept", "PruningStrategy", "ScoreStrategy"]
