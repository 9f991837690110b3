"""A cache layer in memory that is allocated once: appending costs what is appended."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from stc_stream.session.memory.policy import MemoryFullError


class Store:
    """Room for the keys and values of a layer, [B, H, capacity, D] each.

    Attributes:
        keys, values: the first `owned` rows are the stream's, in order; a borrower may have written
            behind them.
        owned: the row behind the stream's last.
        shared: how many rows some fork has seen: they are never written again.
        forks: the layers, alive, of forks that see rows of it.
        borrower: the layer of a fork that has written behind them, while it lives.
    """

    def __init__(self, keys: Tensor, values: Tensor, capacity: int) -> None:
        # Room made in inference mode could not be written to outside it.
        with torch.inference_mode(False):
            self.keys = keys.new_empty((*keys.shape[:2], capacity, keys.shape[3]))
            self.values = values.new_empty((*values.shape[:2], capacity, values.shape[3]))
        self.owned = 0
        self.shared = 0
        self.forks: weakref.WeakSet[PreallocatedLayer] = weakref.WeakSet()
        self.borrower: weakref.ref[PreallocatedLayer] | None = None

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        rows = (self.keys, self.values)
        return sum(len(t) * t.shape[1] * t.shape[3] * t.element_size() for t in rows)

    def write(self, first: int, keys: Tensor, values: Tensor) -> None:
        """Put rows in their place."""
        self.keys[:, :, first : first + keys.shape[2]] = keys
        self.values[:, :, first : first + values.shape[2]] = values

    def rows(self, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Return rows of keys and values, without a copy."""
        return self.keys[:, :, first:end], self.values[:, :, first:end]

    def lent_to(self) -> PreallocatedLayer | None:
        """Return the layer that has written behind the stream's rows."""
        return None if self.borrower is None else self.borrower()

    def take_back(self) -> None:
        """Have the borrower move out, before the stream writes where it has written."""
        layer = self.lent_to()
        if layer is not None:
            layer.move_out()
        self.borrower = None


class PreallocatedLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """A layer of a stream, which owns its store, or of a fork, which shares one.

    A stream sees consecutive rows of its store. A fork sees the same ones, which do not change
    while it lives, and behind them its own: in the store, where it may and nobody else has written;
    else in a tensor of its own, which is joined to the shared rows for each call, as `DynamicLayer`
    joins all of its rows.
    """

    is_sliding = False
    is_croppable = True
    spare = 0
    """Rows behind the capacity that are allocated for answers."""

    def __init__(self, capacity: int) -> None:
        # Not the base class's: keys and values are views here, made when they are asked for.
        self.capacity = capacity
        self._store: Store | None = None
        self._first = 0
        self._seen = 0
        self._owner = True
        self._may_borrow = False
        self._borrowed = 0
        self._tail: tuple[Tensor, Tensor] | None = None

    @property
    def is_initialized(self) -> bool:  # type: ignore[override]
        """Whether there is a store."""
        return self._store is not None

    @property
    def keys(self) -> Tensor | None:  # type: ignore[override]
        """All rows, [B, H, S, D]; None: nothing was written yet."""
        return self._rows()[0] if self._store is not None else None

    @property
    def values(self) -> Tensor | None:  # type: ignore[override]
        """All rows, [B, H, S, D]; None: nothing was written yet."""
        return self._rows()[1] if self._store is not None else None

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the keys."""
        return None if self._store is None else self._store.keys.dtype

    @property
    def device(self) -> torch.device | None:
        """Where the keys are."""
        return None if self._store is None else self._store.keys.device

    @property
    def rows_held(self) -> int:
        """How many rows a call sees, beside its own."""
        tail = 0 if self._tail is None else self._tail[0].shape[2]
        return self._seen + self._borrowed + tail

    @property
    def bytes_held(self) -> int:
        """Bytes of all rows seen, shared ones included."""
        return 0 if self._store is None else self._store.row_bytes * self.rows_held

    @property
    def bytes_reserved(self) -> int:
        """Bytes allocated: the store's, for its owner; those of its own, for a fork."""
        tail = 0 if self._tail is None else sum(rows.nbytes for rows in self._tail)
        return tail + (self._store.bytes if self._owner and self._store is not None else 0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the store for keys and values of these shapes."""
        rows = self.capacity + self.spare if self._owner else 0
        self._store = Store(key_states, value_states, rows)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append rows, and return all.

        Raises:
            MemoryFullError: a stream's rows do not fit; nothing has been written. Those of a fork
                always do.
        """
        if self._store is None:
            self.lazy_initialization(key_states, value_states)
        assert self._store is not None
        new = key_states.shape[2]
        if self._owner:
            if self._end + new > self.capacity:
                raise full(self._seen, new, self.capacity)
            if self._end < self._store.shared:
                # Cropped to less than a fork sees.
                self._replace(*self._rows())
            self._store.take_back()
            self._store.write(self._end, key_states, value_states)
            self._seen += new
            self._store.owned = self._end
        elif self._fits_in_place(new):
            self._store.borrower = weakref.ref(self)
            self._store.write(self._end + self._borrowed, key_states, value_states)
            self._borrowed += new
        else:
            self.move_out()
            assert self._tail is not None
            pairs = zip(self._tail, (key_states, value_states), strict=True)
            keys, values = (torch.cat(pair, dim=2) for pair in pairs)
            self._tail = keys, values
        return self._rows()

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Return how many keys a call will have, and the first one's number.

        Args:
            query_length: new tokens; up to transformers 5.4 their places, one each.
        """
        new = query_length.shape[0] if isinstance(query_length, Tensor) else int(query_length)
        return self.get_seq_length() + new, 0

    def get_seq_length(self, *args: Any) -> int:
        """Return how many rows there are."""
        return self.rows_held

    def get_max_length(self) -> int:
        """Return how many rows fit."""
        return self.capacity

    def get_max_cache_shape(self) -> int:
        """Return how many rows fit: the name until transformers 5.22."""
        return self.get_max_length()

    def fork(self, may_borrow: bool) -> PreallocatedLayer:
        """Return a layer that sees the same rows, without a copy of shared ones."""
        other = copy.copy(self)
        if self._store is None:
            return other
        other._owner, other._borrowed = False, 0
        other._may_borrow = may_borrow and self._owner
        self._store.forks.add(other)
        self._store.shared = max(self._store.shared, self._end)
        if self._borrowed:
            rows = self._store.rows(self._end, self._end + self._borrowed)
            other._tail = rows[0].clone(), rows[1].clone()
        return other

    def save(self) -> Any:
        """Return what `restore` takes back to now."""
        return dict(vars(self))

    def restore(self, saved: Any) -> None:
        """Undo what was written since."""
        vars(self).update(saved)
        if self._owner and self._store is not None:
            self._store.owned = self._end

    def own(self) -> None:
        """Copy all rows into a store of its own, if it has none.

        Raises:
            MemoryFullError: a fork has gone beyond what a stream can hold.
        """
        if self._owner or self._store is None:
            self._owner = True
            return
        held = self.rows_held
        if held > self.capacity:
            raise full(self._seen, held - self._seen, self.capacity)
        self._replace(*self._rows())

    def move_out(self) -> None:
        """Move a fork's own rows out of the stream's store."""
        if self._tail is None:
            assert self._store is not None
            keys, values = self._store.rows(self._end, self._end + self._borrowed)
            # Both in one step: an interrupt between them would count the rows twice.
            vars(self).update(_tail=(keys.clone(), values.clone()), _borrowed=0)

    def crop(self, count: int) -> None:
        """Remove the last -count rows; up to transformers 5.15, leave `count` rows if positive."""
        length = self.rows_held
        left = length + count if count <= 0 else min(count, length)
        if self._tail is not None:
            own = max(left - self._seen, 0)
            self._tail = self._tail[0][:, :, :own], self._tail[1][:, :, :own]
        else:
            self._borrowed = min(self._borrowed, max(left - self._seen, 0))
        self._seen = min(self._seen, left)
        if self._owner and self._store is not None:
            self._store.owned = self._end

    def reset(self) -> None:
        """Forget all rows; forks keep theirs."""
        self.__init__(self.capacity)  # type: ignore[misc]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take other rows of the batch, for beam search."""
        self._take(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        if self._store is not None:
            self._take(torch.arange(len(self._store.keys)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch alone."""
        self._take(indices)

    @property
    def _end(self) -> int:
        """The row of the store behind the stream's last."""
        return self._first + self._seen

    def _fits_in_place(self, new: int) -> bool:
        """Whether a fork may write `new` rows behind the stream's."""
        assert self._store is not None
        return (
            self._may_borrow
            and self._tail is None
            and self._store.owned == self._end
            and self._store.lent_to() in (None, self)
            and self._end + self._borrowed + new <= self._store.keys.shape[2]
        )

    def _rows(self) -> tuple[Tensor, Tensor]:
        assert self._store is not None
        keys, values = self._store.rows(self._first, self._end + self._borrowed)
        if self._tail is None:
            return keys, values
        return torch.cat([keys, self._tail[0]], dim=2), torch.cat([values, self._tail[1]], dim=2)

    def _take(self, indices: Tensor) -> None:
        if self._store is not None:
            keys, values = self._rows()
            indices = indices.to(keys.device)
            self._replace(keys[indices], values[indices])

    def _replace(self, keys: Tensor, values: Tensor) -> None:
        """Own a new store with these rows."""
        # A fork may have gone beyond the capacity.
        store = Store(keys, values, max(self.capacity + self.spare, keys.shape[2]))
        store.write(0, keys, values)
        self._move(store, keys.shape[2])

    def _move(self, store: Store, rows: int, **more: Any) -> None:
        """Own a new store, of which the first rows are filled."""
        store.owned = rows
        old = self._store
        state = {"_store": store, "_first": 0, "_seen": rows, "_owner": True, **more}
        # In one step: an interrupt leaves the old rows or the new ones.
        vars(self).update(state, _may_borrow=False, _borrowed=0, _tail=None)
        if old is not None:
            old.forks.discard(self)


def full(held: int, new: int, capacity: int) -> MemoryFullError:
    """Return the error for tokens that do not fit."""
    return MemoryFullError(
        f"the memory holds {held} of {capacity} tokens, and {new} more do not fit: nothing was "
        "lost. Reset the session, keep fewer tokens of each frame, or give FullMemory more tokens "
        "if the model's context has them"
    )
