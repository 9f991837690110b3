"""A sliding window behind the first tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stc_stream.session.memory import Memory


@dataclass(frozen=True)
class SlidingWindow:
    """The model remembers a stream's first tokens and its last ones (arXiv 2309.17453). Causal.

    Attributes:
        sink_tokens, window_tokens: as in `WindowMemory`.
    """

    sink_tokens: int = 64
    window_tokens: int | None = None

    def __post_init__(self) -> None:
        # Its error, before anything is run.
        assert self.memory is not None

    @cached_property
    def memory(self) -> Memory:
        """What is remembered."""
        from stc_stream.session.memory import WindowMemory

        return WindowMemory(self.sink_tokens, self.window_tokens)


METHOD = SlidingWindow
