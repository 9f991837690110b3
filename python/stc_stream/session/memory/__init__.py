"""What an LLM remembers of a stream: one file a policy."""

from __future__ import annotations

from stc_stream.session.memory.full import FullCache, FullMemory
from stc_stream.session.memory.policy import (
    KeptFrame,
    Memory,
    MemoryFullError,
    SessionCache,
    StreamLayout,
    StreamMemory,
)
from stc_stream.session.memory.recent import RecentMemory
from stc_stream.session.memory.retrieval import RetrievalCache, RetrievalMemory
from stc_stream.session.memory.window import WindowCache, WindowMemory

__all__ = [
    "FullCache",
    "FullMemory",
    "KeptFrame",
    "Memory",
    "MemoryFullError",
    "RecentMemory",
    "RetrievalCache",
    "RetrievalMemory",
    "SessionCache",
    "StreamLayout",
    "StreamMemory",
    "WindowCache",
    "WindowMemory",
]
