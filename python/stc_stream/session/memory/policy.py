"""What a session asks of a memory: the one interface of all policies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from transformers import Cache


class MemoryFullError(RuntimeError):
    """What would be written does not fit; nothing has been written, nothing is lost."""


class SessionCache(Cache, ABC):
    """The keys and values of one stream: a cache as transformers knows it, and what streams need.

    A stream's tokens are appended frame by frame. `fork` and `borrow` see what it holds now,
    without a copy, and go their own way from there: what they or the stream write later, the
    others do not see.
    """

    @abstractmethod
    def reserve(self, blocks: Sequence[int]) -> None:
        """Say what comes next, a frame's tokens each, before it is written.

        Raises:
            MemoryFullError: it does not fit.
        """

    @abstractmethod
    def roll_back(self, held: int) -> None:
        """Undo what was written since `held` tokens were held, whichever layers have it."""

    @abstractmethod
    def fork(self) -> SessionCache:
        """Return a cache that starts with what this one holds; safe beside it in any thread."""

    @abstractmethod
    def borrow(self) -> SessionCache:
        """Return a fork for an answer, which may write into room that the stream has not used yet.

        The stream takes the room back when it needs it, and the fork moves its own tokens out. So
        no two of a stream and its borrowers may be in a forward at once: whoever calls this sees
        to that.
        """

    @abstractmethod
    def own(self) -> None:
        """Make a fork a stream: copy once what it shares, so that appending is as cheap again.

        Raises:
            MemoryFullError: the fork holds more than a stream can.
        """

    @property
    @abstractmethod
    def bytes_device(self) -> int:
        """Bytes of the keys and values held, on the model's device."""

    @property
    @abstractmethod
    def bytes_host(self) -> int:
        """Bytes of the keys and values held that lie in host memory instead."""

    @property
    @abstractmethod
    def bytes_reserved(self) -> int:
        """Bytes allocated for keys and values, used or not."""


class Memory(Protocol):
    """A memory policy: what the LLM remembers of a stream."""

    def open(self, config: Any) -> SessionCache:
        """Return an empty cache.

        Args:
            config: of the LLM, `model.config.get_text_config()`.
        """
