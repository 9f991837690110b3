"""Memories by name, with their settings: what the LLM remembers of a stream."""

from __future__ import annotations

from collections.abc import Mapping

from stc_stream.evaluate.settings import read_settings
from stc_stream.session.memory import (
    FullMemory,
    Memory,
    Positions,
    RecentMemory,
    RetrievalMemory,
    WindowMemory,
)

MEMORIES: Mapping[str, type[FullMemory | RecentMemory | WindowMemory | RetrievalMemory]] = {
    "full": FullMemory,
    "recent": RecentMemory,
    "window": WindowMemory,
    "retrieval": RetrievalMemory,
}


def read_memory(text: str) -> Memory:
    """Return a memory that is written as its name, or `name:setting=value,setting=value`.

    Raises:
        ValueError: no memory of that name, no such setting, or a value that it can't have.
    """
    name, _, written = text.partition(":")
    if name not in MEMORIES:
        raise ValueError(f"memory must be one of {', '.join(MEMORIES)}, but is {name!r}")
    memory: Memory = read_settings(f"memory {name}", MEMORIES[name], written)
    return memory


def endless_positions(memory: Memory | None) -> Positions:
    """Return the positions with which a stream lasts longest: "contiguous" behind a window."""
    return "contiguous" if isinstance(memory, WindowMemory | RetrievalMemory) else "kept"
