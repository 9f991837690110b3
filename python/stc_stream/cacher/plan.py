"""What becomes of a batch's frames: made by the scheduler, followed by every layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stc_stream.cacher.config import CacherConfig
from stc_stream.cacher.references import FrameKind, ReferencePool
from stc_stream.cacher.selection import TokenSelection
from stc_stream.cacher.streams import Stream
from stc_stream.cacher.waits import index_tensor


class Index:
    """Places in some tensor's first dimension, on their way to a device when first needed there."""

    def __init__(self, places: Sequence[int], device: torch.device) -> None:
        self.places = tuple(places)
        self.device = device

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)

    @cached_property
    def tensor(self) -> Tensor:
        """The places, int64 on the device; made without waiting for it."""
        return index_tensor(self.places, self.device)


class GivenIndex(Index):
    """Places that are on the device already, and that may be others when a graph is replayed."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(range(tensor.shape[0]), tensor.device)
        self.tensor = tensor


class Rows(Index):
    """Some rows of a batch, taken without a copy where they lie side by side."""

    def take(self, batch: Tensor) -> Tensor:
        """Return these rows of `batch`, a view where that is possible."""
        if self._adjacent:
            return batch[self.places[0] : self.places[0] + len(self)]
        return batch.index_select(0, self.tensor)

    def put(self, batch: Tensor, values: Tensor) -> None:
        """Write `values` to these rows of `batch`."""
        if self._adjacent:
            batch[self.places[0] : self.places[0] + len(self)] = values
        else:
            batch.index_copy_(0, self.tensor, values)

    def some(self, places: Sequence[int]) -> Rows:
        """Return those of the rows that are at `places`."""
        return Rows([self.places[place] for place in places], self.device)

    @cached_property
    def _adjacent(self) -> bool:
        return all(row == self.places[0] + place for place, row in enumerate(self.places))


@dataclass(frozen=True)
class Budget:
    """How many tokens of a selective row are recomputed in a layer, and which.

    Attributes:
        prefix: tokens at the start of a frame that always are.
        most: patches that are, or at most are with a threshold (k).
        metric: how keys are compared.
        threshold: patches less similar than this are recomputed; None: always `most`.
        step: what the number of patches is rounded up to a multiple of, with a threshold.
        selection: chooses the patches; None: those least similar are.
    """

    prefix: int
    most: int
    metric: str
    threshold: float | None = None
    step: int = 1
    selection: TokenSelection | None = None

    @classmethod
    def of(cls, config: CacherConfig, tokens: int, prefix: int) -> Budget:
        """Return what the settings come to for frames of `tokens`, `prefix` of them no patches."""
        patches = tokens - prefix
        return cls(
            prefix,
            config.updated_tokens(patches),
            config.metric,
            config.threshold,
            config.budget_step(patches),
            config.selection,
        )

    def tokens(self, below: int) -> int:
        """Return the tokens to recompute when `below`, prefix included, are below the threshold."""
        steps = max(1, -(-(below - self.prefix) // self.step))
        return self.prefix + min(self.most, steps * self.step)


@dataclass(frozen=True, eq=False)
class Selective:
    """Rows of which only some tokens are recomputed, and what each is held against.

    Attributes:
        rows: which rows.
        references: the reference of each: its entry in the pool, or its place among the refresh
            rows of the same batch.
    """

    rows: Rows
    references: Index


@dataclass(frozen=True, eq=False)
class Saved:
    """Refresh rows that become their stream's reference.

    Attributes:
        places: where they are among the refresh rows.
        entries: where in the pool each goes.
    """

    places: Rows
    entries: Index


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """What becomes of the frames of a batch that are of one kind, the same in every layer.

    Attributes:
        kind: of the frames.
        pool: where references are kept.
        budget: what is recomputed of a selective row.
        frames: which of the batch's frames these are; rows, below, are places among them.
        refresh: rows computed densely; None: none.
        from_pool: selective rows whose reference is in the pool; None: none.
        from_batch: selective rows whose reference is a refresh row of this batch; None: none.
        saved: what is kept of the refresh rows; None: nothing.
        saved_streams: for each of `saved`, its stream.
        depth: layers that every reference of `from_pool` has; None: there are none.
    """

    kind: FrameKind
    pool: ReferencePool
    budget: Budget
    frames: tuple[int, ...]
    refresh: Rows | None
    from_pool: Selective | None
    from_batch: Selective | None
    saved: Saved | None = None
    saved_streams: tuple[Stream, ...] = ()
    depth: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens of all frames together."""
        return len(self.frames) * self.kind.tokens

    @property
    def computed(self) -> int:
        """Tokens that a layer computes of all frames together, where no threshold counts them."""
        dense = 0 if self.refresh is None else len(self.refresh)
        part = self.budget.prefix + self.budget.most
        return dense * self.kind.tokens + (len(self.frames) - dense) * part

    @property
    def selective(self) -> tuple[Selective, ...]:
        """The selective rows, by where their references are."""
        return tuple(some for some in (self.from_pool, self.from_batch) if some is not None)

    @property
    def saved_frames(self) -> tuple[int, ...]:
        """Which of the batch's frames become references, in the order of `saved_streams`."""
        if self.saved is None or self.refresh is None:
            return ()
        return tuple(self.frames[row] for row in self.refresh.some(self.saved.places.places))


class PlanDraft:
    """The plan of one kind of frames in the making, row by row."""

    def __init__(self, kind: FrameKind, pool: ReferencePool) -> None:
        self.kind = kind
        self.pool = pool
        self._frames: list[int] = []
        self._refresh: list[int] = []
        self._refreshed: dict[int, int] = {}
        self._from_pool: list[tuple[int, int]] = []
        self._from_batch: list[tuple[int, int]] = []
        self._saved: dict[int, Stream] = {}
        self._depths: list[int] = []

    def refresh(self, frame: int) -> None:
        """Compute a frame densely."""
        self._refreshed[frame] = len(self._refresh)
        self._refresh.append(self._row(frame))

    def save(self, frame: int, stream: Stream) -> None:
        """Keep what a refresh frame leaves, unless its stream has another reference in the end."""
        self._saved[frame] = stream

    def use_batch(self, frame: int, reference: int) -> None:
        """Hold a frame against one of this batch that is computed densely."""
        self._from_batch.append((self._row(frame), self._refreshed[reference]))

    def use_pool(self, frame: int, entry: int) -> None:
        """Hold a frame against a reference in the pool."""
        self._from_pool.append((self._row(frame), entry))
        self._depths.append(self.pool.depth(entry))

    def finish(self, budget: Budget) -> BatchPlan:
        """Return the plan, once all frames are placed."""
        device = self.kind.device
        # A stream's last refresh stays; one that was evicted since, or refreshed again, does not.
        saved = {
            frame: stream
            for frame, stream in self._saved.items()
            if stream.frame == frame and stream.pool is self.pool
        }
        return BatchPlan(
            kind=self.kind,
            pool=self.pool,
            budget=budget,
            frames=tuple(self._frames),
            refresh=Rows(self._refresh, device) if self._refresh else None,
            from_pool=_selective(self._from_pool, device),
            from_batch=_selective(self._from_batch, device),
            saved=Saved(
                Rows([self._refreshed[frame] for frame in saved], device),
                Index([stream.entry for stream in saved.values()], device),
            )
            if saved
            else None,
            saved_streams=tuple(saved.values()),
            depth=min(self._depths, default=None),
        )

    def _row(self, frame: int) -> int:
        self._frames.append(frame)
        return len(self._frames) - 1


def _selective(pairs: Sequence[tuple[int, int]], device: torch.device) -> Selective | None:
    if not pairs:
        return None
    rows, references = zip(*pairs, strict=True)
    return Selective(Rows(rows, device), Index(references, device))
