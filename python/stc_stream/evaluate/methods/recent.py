"""The last frames alone: what a memory must beat."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stc_stream.session.memory import Memory


@dataclass(frozen=True)
class LastFrames:
    """The model remembers the last frames of the stream and nothing else. Causal.

    SimpleStream (arXiv 2604.02317): the last four frames, as if there had been no others. They are
    prefilled when something is asked, so that this is part of an answer's time.

    Attributes:
        frames: how many.
    """

    frames: int = 4

    def __post_init__(self) -> None:
        # Its error, before anything is run.
        assert self.memory is not None

    @cached_property
    def memory(self) -> Memory:
        """What is remembered."""
        from stc_stream.session.memory import RecentMemory

        return RecentMemory(self.frames)


METHOD = LastFrames
