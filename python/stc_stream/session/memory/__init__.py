"""What an LLM remembers of a stream: one file a policy."""

from __future__ import annotations

from stc_stream.session.memory.full import FullCache, FullMemory
from stc_stream.session.memory.policy import Memory, MemoryFullError, SessionCache

__all__ = ["FullCache", "FullMemory", "Memory", "MemoryFullError", "SessionCache"]
