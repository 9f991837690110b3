"""From frames to answers: streaming sessions on video LLMs of transformers."""

from __future__ import annotations

from stc_stream.session.compressed import compressed
from stc_stream.session.memory import (
    FullMemory,
    Memory,
    MemoryFullError,
    RecentMemory,
    RetrievalMemory,
    SessionCache,
    WindowMemory,
)
from stc_stream.session.processor import SessionProcessor
from stc_stream.session.results import Fed, SessionStats
from stc_stream.session.session import StreamingSession

__all__ = [
    "Fed",
    "FullMemory",
    "Memory",
    "MemoryFullError",
    "RecentMemory",
    "RetrievalMemory",
    "SessionCache",
    "SessionProcessor",
    "SessionStats",
    "StreamingSession",
    "WindowMemory",
    "compressed",
]
