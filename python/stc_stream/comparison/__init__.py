"""A vision tower on a stream of frames, dense and compressed side by side, and what that saved."""

from __future__ import annotations

from stc_stream.comparison.engine import StreamComparison
from stc_stream.comparison.fidelity import Fidelity
from stc_stream.comparison.results import (
    FrameNumbers,
    FrameResult,
    FrameView,
    Summary,
    summarise,
)

__all__ = [
    "Fidelity",
    "FrameNumbers",
    "FrameResult",
    "FrameView",
    "StreamComparison",
    "Summary",
    "summarise",
]
