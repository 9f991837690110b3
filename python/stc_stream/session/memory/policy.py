"""What a session asks of a memory: the one interface of all policies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor
from transformers import Cache

from stc_stream.session.numbering import Kept, Numbering, Place, Positions, TemporalPatch


class MemoryFullError(RuntimeError):
    """What would be written does not fit; nothing has been written, nothing is lost."""


@dataclass(frozen=True, eq=False)
class KeptFrame:
    """What is kept of a frame (temporal patch): tokens [k, D], and their places, int64 [k].

    Attributes:
        patch: what it is kept of; not known to a Pruner.
    """

    tokens: Tensor
    index: Tensor
    patch: TemporalPatch = field(default=TemporalPatch(0, 0, ()))

    @property
    def count(self) -> int:
        """How many tokens the LLM gets, those of text around it included."""
        return len(self.index) + self.patch.text

    @property
    def block(self) -> Block:
        """Its temporal patch, and how many tokens are kept."""
        return self.patch, len(self.index)


Block = tuple[TemporalPatch, int]
"""A frame (temporal patch), and how many of its tokens are kept."""


@dataclass(frozen=True)
class StreamLayout:
    """What is known of a stream before its first frame.

    Attributes:
        positions: "kept" or "contiguous", as the session has it.
        before: tokens of text before the first frame, which are a stream's first block.
        tokens_per_frame: what the model makes of a frame, before any are dropped; None: that
            depends on its size.
        numbering: what gives frames their positions.
        frames_per_patch: frames that make a temporal patch.
    """

    positions: Positions = "kept"
    before: int = 0
    tokens_per_frame: int | None = None
    numbering: Numbering = field(default_factory=Kept)
    frames_per_patch: int = 1

    def place(self, blocks: Sequence[Block], place: Place | None = None) -> Place:
        """Return the place behind frames; None: behind the text and frames at a stream's start."""
        place = place or Place().after_text(self.before)
        for patch, kept in blocks:
            place = place.after_text(len(patch.before))
            place = self.numbering.after(place, patch, kept).after_text(len(patch.behind))
        return place


Prefill = Callable[[Sequence[KeptFrame], Place, "SessionCache"], Place]
"""Writes frames into a cache, from a place on; returns the place behind them.

From the first place on the text before a video comes first.
"""


@dataclass(frozen=True, eq=False)
class Ready:
    """What an answer starts with.

    Attributes:
        cache: takes the question, and what follows.
        place: of what comes next.
        taken: positions of the model's context that are taken before it.
    """

    cache: SessionCache
    place: Place
    taken: int


class StreamMemory(ABC):
    """What is remembered of one stream."""

    @abstractmethod
    def reserve(self, blocks: Sequence[int]) -> None:
        """Say what comes next, a block's tokens each, before it is written.

        Args:
            blocks: tokens of text before the next frame, then those of each frame.

        Raises:
            MemoryFullError: it does not fit.
        """

    @abstractmethod
    def span(self, end: Place, blocks: Sequence[Block], count: int) -> int:
        """Return how many of the context's positions are taken once frames are written.

        Args:
            end: the place behind them, if nothing is forgotten.
            blocks: the frames.
            count: positions that they take, with the text before them.
        """

    @abstractmethod
    def take(self, frames: Sequence[KeptFrame], place: Place, prefill: Prefill) -> Place:
        """Remember frames that come at a place; return the place behind them."""

    @abstractmethod
    def answering(self, place: Place, prefill: Prefill, more: int = 0) -> Ready:
        """Return what an answer starts with, which sees all that is remembered now.

        Args:
            place: of the next token.
            prefill: for frames that are in no cache.
            more: frames (temporal patches) that come before the question, for it alone.

        It may write into room that the stream has not used yet, and moves its own tokens out when
        the stream needs that room. So no two of a stream and its answers may be in a forward at
        once: whoever calls this sees to that.
        """

    @abstractmethod
    def save(self) -> Any:
        """Return what `restore` takes back to now, while nobody else writes. It copies no keys."""

    @abstractmethod
    def restore(self, saved: Any) -> None:
        """Undo what was written since, whichever layers have it."""

    @abstractmethod
    def fork(self) -> StreamMemory:
        """Return a memory that starts with what this one holds; safe beside it in any thread."""

    @abstractmethod
    def own(self) -> None:
        """Make a fork a stream: copy once what it shares, so that appending is as cheap again.

        Raises:
            MemoryFullError: the fork holds more than a stream can.
        """

    @property
    @abstractmethod
    def tokens_held(self) -> int:
        """Tokens held, those of text before the first frame included."""

    @property
    @abstractmethod
    def bytes_device(self) -> int:
        """Bytes held on the model's device: keys and values, or frames' tokens."""

    @property
    @abstractmethod
    def bytes_host(self) -> int:
        """Bytes held that lie in host memory instead."""

    @property
    @abstractmethod
    def bytes_reserved(self) -> int:
        """Bytes allocated, used or not."""

    @property
    def frames_forgotten(self) -> int:
        """Frames (temporal patches) of which nothing is held any more."""
        return 0


class SessionCache(Cache, StreamMemory):
    """The keys and values of one stream: a cache as transformers knows it, and what streams need.

    A stream's tokens are appended frame by frame. `fork` and `borrow` see what it holds now,
    without a copy, and go their own way from there: what they or the stream write later, the
    others do not see.
    """

    @abstractmethod
    def borrow(self) -> SessionCache:
        """Return a fork for an answer, as `answering` has it."""

    def take(self, frames: Sequence[KeptFrame], place: Place, prefill: Prefill) -> Place:
        """Write frames."""
        return prefill(frames, place, self)

    def answering(self, place: Place, prefill: Prefill, more: int = 0) -> Ready:
        """Return a fork."""
        return Ready(self.borrow(), place, self.span(place, (), 0))

    def span(self, end: Place, blocks: Sequence[Block], count: int) -> int:
        """Return the last position's number: nothing that had one gives it back."""
        return end.reach

    def make_room(self, blocks: Sequence[int], place: Place) -> tuple[int, Place]:
        """Make room for the next blocks' tokens, of which the first come at a place.

        Returns:
            how many of the blocks may go through the LLM at once, at least one; and the place at
            which they come now.
        """
        return len(blocks), place

    def running(self, llm: Any, positions: Tensor) -> AbstractContextManager[None]:
        """Return a context in which the LLM runs with this cache on what comes next.

        Args:
            llm: transformers' model without its head.
            positions: int64 [axes, n].
        """
        return nullcontext()

    @property
    def retrieved(self) -> tuple[tuple[int, ...], ...]:
        """For each layer the numbers of the frames that were brought back for this answer."""
        return ()

    @property
    def tokens_held(self) -> int:
        """Tokens whose keys are held."""
        return int(self.get_seq_length())


class Memory(Protocol):
    """A memory policy: what the LLM remembers of a stream."""

    def open(self, config: Any, layout: StreamLayout = ...) -> StreamMemory:
        """Return an empty memory.

        Args:
            config: of the LLM, `model.config.get_text_config()`.
            layout: what is known of the stream.
        """


def check_at_least(name: str, value: Any, least: int) -> None:
    """Refuse a setting that is no int, or too small."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, but is {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, but is {value}")


def check_no_window(config: Any, what: str) -> None:
    """Refuse an LLM with layers that see a window of their own, by how far tokens are apart."""
    kinds = getattr(config, "layer_types", None)
    window = None if kinds else getattr(config, "sliding_window", None)
    if window is not None or set(kinds or ()) - {"full_attention"}:
        said = f"sliding_window is {window}" if kinds is None else f"layer_types are {kinds}"
        raise ValueError(
            f"{what} is for models in which all layers see all tokens, but the model's {said}"
        )
