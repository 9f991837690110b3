"""Frames that are brought back for a question."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stc_stream.session.memory import Memory


@dataclass(frozen=True)
class Retrieval:
    """A question sees the frames that are nearest to it, of all so far (arXiv 2503.00540). Causal.

    ReKV, with the deviations that `RetrievalMemory` names.

    Attributes:
        window_tokens, blocks, host_bytes: as in `RetrievalMemory`.
    """

    window_tokens: int = 15000
    blocks: int = 64
    host_bytes: int | None = None

    def __post_init__(self) -> None:
        # Its error, before anything is run.
        assert self.memory is not None

    @cached_property
    def memory(self) -> Memory:
        """What is remembered."""
        from stc_stream.session.memory import RetrievalMemory

        return RetrievalMemory(self.window_tokens, self.blocks, self.host_bytes)


METHOD = Retrieval
