"""The Cacher: a vision tower that recomputes only the tokens that changed (algorithm.md, 1)."""

from __future__ import annotations

from stc_stream.cacher.cacher import Cacher, CacherStats, attach_cacher
from stc_stream.cacher.config import CacherConfig
from stc_stream.cacher.policy import RefreshPolicy, StreamFrame
from stc_stream.cacher.record import LayerRecord, Recording
from stc_stream.cacher.selection import TokenSelection

__all__ = [
    "Cacher",
    "CacherConfig",
    "CacherStats",
    "LayerRecord",
    "Recording",
    "RefreshPolicy",
    "StreamFrame",
    "TokenSelection",
    "attach_cacher",
]
