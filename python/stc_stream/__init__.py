"""Streaming Token Compression (arXiv 2512.00891) for vision towers and the tokens they make.

`attach_cacher` makes a vision tower recompute only what changed since a reference frame,
`TokenPruner` keeps the most novel tokens of each frame, and `StreamingSession` carries both into a
video LLM that answers while frames come. Names are imported when they are first
used, so that the `stc` command can report what is missing before torch is loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stc_stream.cacher import (
        Cacher,
        CacherConfig,
        CacherStats,
        LayerRecord,
        RefreshPolicy,
        StreamFrame,
        TokenSelection,
        attach_cacher,
    )
    from stc_stream.pruner import (
        PrunedTokens,
        PrunerConfig,
        PruningStrategy,
        ScoreStrategy,
        TokenPruner,
    )
    from stc_stream.session import (
        Fed,
        FullMemory,
        MemoryFullError,
        RecentMemory,
        RetrievalMemory,
        SessionProcessor,
        SessionStats,
        StreamingSession,
        WindowMemory,
        compressed,
    )

__all__ = [
    "Cacher",
    "CacherConfig",
    "CacherStats",
    "Fed",
    "FullMemory",
    "LayerRecord",
    "MemoryFullError",
    "PrunedTokens",
    "PrunerConfig",
    "PruningStrategy",
    "RecentMemory",
    "RefreshPolicy",
    "RetrievalMemory",
    "ScoreStrategy",
    "SessionProcessor",
    "SessionStats",
    "StreamFrame",
    "StreamingSession",
    "TokenPruner",
    "TokenSelection",
    "WindowMemory",
    "attach_cacher",
    "compressed",
]

_HOMES = {
    "Cacher": "cacher",
    "CacherConfig": "cacher",
    "CacherStats": "cacher",
    "Fed": "session",
    "FullMemory": "session",
    "LayerRecord": "cacher",
    "MemoryFullError": "session",
    "PrunedTokens": "pruner",
    "PrunerConfig": "pruner",
    "PruningStrategy": "pruner",
    "RecentMemory": "session",
    "RefreshPolicy": "cacher",
    "RetrievalMemory": "session",
    "ScoreStrategy": "pruner",
    "SessionProcessor": "session",
    "SessionStats": "session",
    "StreamFrame": "cacher",
    "StreamingSession": "session",
    "TokenPruner": "pruner",
    "TokenSelection": "cacher",
    "WindowMemory": "session",
    "attach_cacher": "cacher",
    "compressed": "session",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stc_stream' has no attribute '{name}'")
    value = getattr(import_module(f"stc_stream.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
