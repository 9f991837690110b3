"""A vision tower on a stream of frames, dense and compressed side by side, and what that saved."""

from __future__ import annotations

from stc_stream.comparison.engine import StreamComparison
from stc_stream.comparison.results import (
    FrameNumbers,
    FrameResult,
    FrameView,
    Latency,
    Summary,
    summarise,
)
from stc_stream.comparison.tower import ModelError, VisionTower, load_tower

__all__ = [
    "FrameNumbers",
    "FrameResult",
    "FrameView",
    "Latency",
    "ModelError",
    "StreamComparison",
    "Summary",
    "VisionTower",
    "load_tower",
    "summarise",
]
