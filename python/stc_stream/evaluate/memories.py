"""Memories by name, with their settings: what the LLM remembers of a stream."""

from __future__ import annotations

from collections.abc import Mapping

from stc_stream.evaluate.settings import read_settings
from stc_stream.session.memory import (
    FullMemory,
    Memory,
    RecentMemory,
    RetrievalMemory,
    WindowMemory,
)
from stc_stream.session.numbering import Positions

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


def endless_positions(memory: Memory | None, axes: int) -> Positions:
    """Return the positions with which a stream lasts longest.

    Args:
        memory: a window's keys can be moved, so that kept tokens are numbered from 0 for ever.
        axes: of the model's positions; with several, keys can't be moved.
    """
    moves = isinstance(memory, WindowMemory | RetrievalMemory) and axes == 1
    return "contiguous" if moves else "kept"
