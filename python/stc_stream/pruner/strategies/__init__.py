"""Rules that choose which tokens of a frame go on to the LLM: one file each."""

from __future__ import annotations

from stc_stream.pruner.strategies.dtd import Dtd
from stc_stream.pruner.strategies.dual_anchor import DualAnchor
from stc_stream.pruner.strategies.evs import Evs, EvsPerFrame
from stc_stream.pruner.strategies.gaussian import Gaussian
from stc_stream.pruner.strategies.random import Random
from stc_stream.pruner.strategies.strategy import Kept, PruningStrategy, ScoreStrategy
from stc_stream.pruner.strategies.streamingtom import StreamingTom
from stc_stream.pruner.strategies.uniform import Uniform
from stc_stream.pruner.strategies.vidcom2 import VidCom2
from stc_stream.pruner.strategies.visionzip import VisionZip

__all__ = [
    "Dtd",
    "DualAnchor",
    "Evs",
    "EvsPerFrame",
    "Gaussian",
    "Kept",
    "PruningStrategy",
    "Random",
    "ScoreStrategy",
    "StreamingTom",
    "Uniform",
    "VidCom2",
    "VisionZip",
]
