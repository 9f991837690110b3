"""The window memory: a stream's first tokens, and its last ones."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stc_stream.session.memory.layer import PreallocatedLayer, Store
from stc_stream.session.memory.layered import LayeredCache
from stc_stream.session.memory.policy import (
    Block,
    MemoryFullError,
    StreamLayout,
    check_at_least,
    check_no_window,
)
from stc_stream.session.memory.rotary import Rotary
from stc_stream.session.numbering import Place

if TYPE_CHECKING:
    from typing_extensions import Self


ROWS_AT_ONCE = 1024
"""Rows that are moved together, so that what is computed of them stays small."""


@dataclass(frozen=True)
class WindowMemory:
    """Remembers a stream's first tokens (attention sinks) and its last ones.

    Before a frame is written, as many of the oldest tokens behind the sinks go as have no room in
    the window with it; so a token of the frame sees the sinks, the tokens left, and those of its
    frame up to itself. A question is put behind all that is held, and evicts nothing.

    With `positions="kept"` tokens keep their positions, which grow: at the end of the model's
    context `feed` raises `MemoryFullError` before it writes anything. With "contiguous" the tokens
    held are numbered from 0 again after each eviction: a stream has no end.

    Attributes:
        sink_tokens: first tokens of the stream that stay, the prompt's beginning among them.
        window_tokens: last tokens that are held beside them, at least those of a frame; None: two
            fifths of the model's context. Twice as much is allocated.

    Raises:
        TypeError: a setting is not an int; when a cache is opened for contiguous positions, a model
            whose positions have several axes.
        ValueError: `sink_tokens` below 0, `window_tokens` below 1; when a cache is opened, more
            than the model's context, rotary positions that keys can't be moved in exactly, or
            layers with a window of their own.

    Source: StreamingLLM, arXiv 2309.17453.
    """

    sink_tokens: int = 64
    window_tokens: int | None = None

    def __post_init__(self) -> None:
        check_at_least("sink_tokens", self.sink_tokens, 0)
        if self.window_tokens is not None:
            check_at_least("window_tokens", self.window_tokens, 1)

    def open(self, config: Any, layout: StreamLayout | None = None) -> WindowCache:
        """Return an empty cache, which transformers' `generate` takes as `past_key_values`.

        There each call is a frame: give a prompt longer than the window in parts.

        Args:
            config: of the LLM, `model.config.get_text_config()`.
            layout: of the stream; None: positions are kept.
        """
        layout = layout or StreamLayout()
        check_no_window(config, "WindowMemory")
        context = config.max_position_embeddings
        window = 2 * context // 5 if self.window_tokens is None else self.window_tokens
        if self.sink_tokens + window > context:
            raise ValueError(
                f"sink_tokens and window_tokens must be at most {context} together, the model's "
                f"context, but are {self.sink_tokens} and {window}"
            )
        moved = layout.positions == "contiguous"
        rotary = Rotary.of(config, "WindowMemory with positions='contiguous'") if moved else None
        layers = config.num_hidden_layers
        return WindowCache(
            [WindowLayer(self.sink_tokens, window, rotary, context) for _ in range(layers)],
            Ends(layout.before, self.sink_tokens),
        )


class WindowLayer(PreallocatedLayer):  # type: ignore[no-untyped-call]
    """A layer that holds sinks and a window, which lie in its store one behind the other.

    Evicting moves the sinks forward, into rows of what is evicted. At the store's end all rows move
    to its beginning, which is as long; to another store where a fork still sees the rows, or where
    they could not be brought back after an error.

    Args:
        sink, window: in tokens.
        rotary: None: tokens keep their positions. Otherwise a row's position is `_shift`, that of
            the first row, and its place.
        context: positions of the model; None: no matter, since none are moved.
    """

    spare = 512

    def __init__(
        self, sink: int, window: int, rotary: Rotary | None, context: int | None = None
    ) -> None:
        rows = 2 * (sink + window) + max(window // 4, 1)
        if rotary is not None and context is not None:
            rows = min(rows, context)
        super().__init__(rows)
        self._context = context
        self.sink, self.window, self.rotary = sink, window, rotary
        self._evicted = 0
        self._shift = 0
        self._sinks: tuple[Tensor, Tensor] | None = None
        self._undo: weakref.ref[Undo] | None = None

    @property
    def seen(self) -> int:
        """Tokens that came, those that have gone included."""
        return self._evicted + self.rows_held

    @property
    def evicted(self) -> int:
        """Tokens behind the sinks that have gone."""
        return self._evicted

    @property
    def next_position(self) -> int:
        """The next token's position, where rows are numbered again."""
        return self._shift + self.rows_held

    def get_seq_length(self, *args: Any) -> int:
        """Return how many tokens came, those that have gone included."""
        return self.seen

    def get_max_length(self) -> int:
        """Return -1: there is always room."""
        return -1

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Return how many keys a call will have, and the first one's number."""
        new = query_length.shape[0] if isinstance(query_length, Tensor) else int(query_length)
        left = self.rows_held - (self._excess(new) if self._owner else 0)
        return left + new, self.get_seq_length() - left

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Evict what has to go, append rows, and return all.

        Raises:
            MemoryFullError: the rows of a stream are more than the window; nothing was written.
        """
        if self._owner:
            self.evict(key_states.shape[2])
        return super().update(key_states, value_states, *args, **kwargs)

    def evict(self, new: int) -> None:
        """Make room for `new` rows of a stream."""
        store, excess = self._store, self._excess(new)
        if excess > max(self._seen - self.sink, 0):
            raise too_long(new, self.window)
        if store is None:
            return
        undo = self._saved(store)
        # What was saved lies there, if all rows have moved to the beginning since.
        room = undo.first if undo is not None and self._first < undo.first else self.capacity
        ends = self._end + new > room or self._shift + self._seen + new > self.capacity
        if not (ends or excess):
            return
        if self._sinks is None:
            keys, values = store.rows(self._first, self._first + self.sink)
            self._sinks = keys.clone(), values.clone()
        if ends or len(store.forks):
            self._start_over(store, excess)
        else:
            self._move_sinks(store, excess)

    def fork(self, may_borrow: bool) -> WindowLayer:
        """Return a layer that sees the same rows, and evicts none until it is a stream."""
        other = super().fork(may_borrow)
        assert isinstance(other, WindowLayer)
        other._owner = False
        return other

    def sinks(self) -> tuple[Tensor, Tensor] | None:
        """Return the sinks' keys and values at their first positions, [B, H, at most sink, D]."""
        if self._sinks is not None or self._store is None:
            return self._sinks
        keys, values = self._rows()
        return keys[:, :, : self.sink], values[:, :, : self.sink]

    def save(self) -> Any:
        """Return what `restore` takes back to now."""
        undo = Undo(self._store, self._first)
        self._undo = weakref.ref(undo)
        return undo, super().save()

    def restore(self, saved: Any) -> None:
        """Undo what was written and evicted since."""
        undo, state = saved
        for store, first, keys, values in reversed(undo.rows):
            store.write(first, keys, values)
        super().restore(state)

    def reset(self) -> None:
        """Forget all rows; forks keep theirs."""
        self.__init__(self.sink, self.window, self.rotary, self._context)  # type: ignore[misc]

    def _excess(self, new: int) -> int:
        return max(self._seen + new - self.sink - self.window, 0)

    def _move_sinks(self, store: Store, excess: int) -> None:
        """Evict rows in place: the sinks are written over them."""
        first, shift = self._first + excess, self._shift + excess
        assert self._sinks is not None
        undo = self._saved(store)
        if undo is not None and self.sink:
            keys, values = store.rows(first, first + self.sink)
            undo.rows.append((store, first, keys.clone(), values.clone()))
        if self.sink:
            keys, values = self._sinks
            if self.rotary is not None:
                keys = self.rotary.turn(keys, torch.tensor([shift]))
            store.write(first, keys, values)
        vars(self).update(
            _first=first,
            _shift=shift,
            _seen=self._seen - excess,
            _evicted=self._evicted + excess,
        )

    def _start_over(self, store: Store, excess: int) -> None:
        """Evict rows and move the others to a store's beginning, numbered from 0 again."""
        assert self._sinks is not None
        keys, values = store.rows(self._first + self.sink + excess, self._end)
        rows, undo = self.sink + keys.shape[2], self._saved(store)
        free = self._first if undo is None else min(self._first, undo.first)
        other = store
        if rows > free or len(store.forks):
            other = Store(keys, values, self.capacity + self.spare)
        # No fork sees them.
        other.shared = 0
        other.write(0, *self._sinks)
        back = torch.tensor([self._shift + excess])
        for first in range(0, keys.shape[2], ROWS_AT_ONCE):
            part = keys[:, :, first : first + ROWS_AT_ONCE]
            if self.rotary is not None:
                part = self.rotary.turn(part, back, back=True)
            other.write(self.sink + first, part, values[:, :, first : first + ROWS_AT_ONCE])
        self._move(other, rows, _shift=0, _evicted=self._evicted + excess)

    def _saved(self, store: Store) -> Undo | None:
        """Return what may have to be undone in a store."""
        undo = None if self._undo is None else self._undo()
        return undo if undo is not None and undo.store is store else None

    def _take(self, indices: Tensor) -> None:
        if self._sinks is not None:
            keys, values = self._sinks
            indices = indices.to(keys.device)
            self._sinks = keys[indices], values[indices]
        super()._take(indices)


class Undo:
    """Rows that were written over, with where they were; while somebody may want them.

    Args:
        store: of the layer when it was saved.
        first: the first row that it saw.
    """

    def __init__(self, store: Store | None, first: int) -> None:
        self.store = store
        self.first = first
        self.rows: list[tuple[Store, int, Tensor, Tensor]] = []


class Ends:
    """Where each frame ends that is still held in part.

    Args:
        before: tokens of text before the first frame.
        sink: tokens that stay.
    """

    def __init__(self, before: int, sink: int) -> None:
        self._sink = sink
        self._next = 0
        self._text = before > 0
        self._ends: tuple[int, ...] = ()
        self.forgotten = 0

    def add(self, blocks: Sequence[int], evicted: int) -> None:
        """Count blocks, and those of which no token is left."""
        for count in blocks:
            first, self._next = self._next, self._next + count
            # A frame that keeps one of the sinks is never forgotten.
            if not self._text and first >= self._sink:
                self._ends = (*self._ends, self._next)
            self._text = False
        gone = sum(end <= self._sink + evicted for end in self._ends)
        self._ends, self.forgotten = self._ends[gone:], self.forgotten + gone


class WindowCache(LayeredCache):
    """The cache of a `WindowMemory`."""

    def __init__(self, layers: Sequence[WindowLayer], ends: Ends) -> None:
        super().__init__(layers)
        self._ends = ends

    def reserve(self, blocks: Sequence[int]) -> None:
        """Check that each frame has room in the window."""
        first = self._windows[0]
        text, longest = blocks[0], max(blocks[1:], default=0)
        if longest > first.window or text > first.sink + first.window:
            raise too_long(longest if longest > first.window else text, first.window)

    def make_room(self, blocks: Sequence[int], place: Place) -> tuple[int, Place]:
        """Evict what has no room with the next block; as many go at once as evict nothing."""
        first = self._windows[0]
        room = first.sink + first.window - first.rows_held
        taken = total = 0
        for count in blocks:
            if taken and total + count > room:
                break
            taken, total = taken + 1, total + count
        self._ends.add(blocks[:taken], first.evicted + max(total - room, 0))
        for layer in self._windows:
            layer.evict(total)
        if first.rotary is not None:
            place = Place(first.next_position, first.next_position)
        return taken, place

    def span(self, end: Place, blocks: Sequence[Block], count: int) -> int:
        """Return the last position's number, or how many tokens will be held."""
        first = self._windows[0]
        if first.rotary is None:
            return super().span(end, blocks, count)
        return min(first.rows_held + count, first.sink + first.window)

    def save(self) -> Any:
        """Return each layer's state."""
        return dict(vars(self._ends)), super().save()

    def restore(self, saved: Any) -> None:
        """Take each layer back to a state."""
        ends, layers = saved
        vars(self._ends).update(ends)
        super().restore(layers)

    @property
    def tokens_held(self) -> int:
        """Tokens whose keys are held."""
        return self._windows[0].rows_held

    @property
    def frames_forgotten(self) -> int:
        """Frames of which nothing is held any more."""
        return self._ends.forgotten

    @property
    def _windows(self) -> list[WindowLayer]:
        return [layer for layer in self.layers if isinstance(layer, WindowLayer)]

    def _forked(self, may_borrow: bool) -> Self:
        other = super()._forked(may_borrow)
        other._ends = copy.copy(self._ends)
        return other


def too_long(count: int, window: int) -> MemoryFullError:
    """Return the error for a frame, or a call, that is longer than the window."""
    return MemoryFullError(
        f"the window has room for {window} tokens, but {count} come at once: nothing was lost. "
        "Keep fewer tokens of each frame, or give the memory more window_tokens"
    )
