"""The streams of a Cacher: which rows of a batch are computed whole, and who holds a reference."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stc_stream.cacher.config import CacherConfig
from stc_stream.cacher.policy import StreamFrame
from stc_stream.cacher.references import FrameKind, ReferencePool

Pools = Callable[[FrameKind], ReferencePool]


@dataclass(eq=False)
class Stream:
    """A stream's frames so far, and its reference.

    Attributes:
        frames: frames it has had.
        phase: how many frames early its refreshes come, under `stagger`.
        age: frames since its reference was computed.
        pool, slot: where its reference is kept; no pool: nowhere.
        finite: whether the frame that became its reference came out finite, a bool tensor not
            waited for yet; None: it did.
        pixels: the pixels of its reference, where changes are watched.
        row: while a batch is planned, the row that is its reference; None: it is in the pool.
    """

    frames: int = 0
    phase: int = 0
    age: int = 0
    pool: ReferencePool | None = None
    slot: int = 0
    finite: Tensor | None = None
    pixels: Tensor | None = None
    row: int | None = None

    @property
    def kept(self) -> bool:
        """Whether the stream holds a place for a reference."""
        return self.pool is not None


@dataclass(frozen=True)
class Counts:
    """What a batch, or all batches since attaching, came to; see `CacherStats`."""

    frames: int = 0
    refreshes: int = 0
    changes: int = 0
    restarts: int = 0
    evictions: int = 0
    rejected: int = 0

    def plus(self, **more: int) -> Counts:
        """Return the counts with some raised."""
        return replace(self, **{name: getattr(self, name) + by for name, by in more.items()})


@dataclass(frozen=True, eq=False)
class Plan:
    """What becomes of the rows of a batch that are of one kind.

    Attributes:
        kind: of the frames.
        pool: where references are kept.
        rows: which rows of the batch they are; rows below are places in this.
        refresh: rows computed whole.
        stored: selective rows held against a reference in the pool.
        slots: where each of `stored` finds its reference.
        joined: selective rows held against a row of `refresh`.
        sources: for each of `joined`, its reference's place in `refresh`.
        written: for each reference that is kept, its place in `refresh`.
        destinations: for each of `written`, its slot in the pool.
        keepers: for each of `written`, its stream.
        depth: layers that every reference in `slots` has; None: there are none.
    """

    kind: FrameKind
    pool: ReferencePool
    rows: tuple[int, ...]
    refresh: tuple[int, ...]
    stored: tuple[int, ...]
    slots: tuple[int, ...]
    joined: tuple[int, ...]
    sources: tuple[int, ...]
    written: tuple[int, ...]
    destinations: tuple[int, ...]
    keepers: tuple[Stream, ...]
    depth: int | None


class Frames:
    """What planning may ask about the frames of a batch.

    Args:
        kinds: of each row.
        finite: tells of all rows whether they are finite; asked at most once.
        pixels: of each row; None: changes are not watched.
        changes: (rows, references) → share of patches that differ, for each pair.
    """

    def __init__(
        self,
        kinds: Sequence[FrameKind],
        finite: Callable[[], Sequence[bool]],
        pixels: Sequence[Tensor] | None = None,
        changes: Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[float]] | None = None,
    ) -> None:
        self.kinds = kinds
        self.pixels = pixels
        self._ask_finite = finite
        self._finite: Sequence[bool] | None = None
        self._changes = changes
        self._known: dict[tuple[int, int | None], float] = {}

    def finite(self, row: int) -> bool:
        """Tell whether all of a row's tokens are finite."""
        if self._finite is None:
            self._finite = self._ask_finite()
        return self._finite[row]

    def look_ahead(self, references: Sequence[Tensor | None]) -> None:
        """Compare each row with the reference that its stream has now, all at once."""
        if self.pixels is None or self._changes is None:
            return
        pairs = [
            (row, current, reference)
            for row, (current, reference) in enumerate(zip(self.pixels, references, strict=True))
            if reference is not None and reference.shape == current.shape
        ]
        if pairs:
            rows, current, reference = zip(*pairs, strict=True)
            shares = self._changes(current, reference)
            self._known |= {(row, None): share for row, share in zip(rows, shares, strict=True)}

    def changed(self, row: int, reference: int | None) -> float:
        """Return the share of a row's patches that changed.

        Args:
            row: the row.
            reference: the row that it is held against; None: what `look_ahead` was given.
        """
        if self.pixels is None or self._changes is None:
            raise RuntimeError(
                "the policy asked for changed(), but has no attribute watches_change = True"
            )
        known = self._known.get((row, reference))
        if known is None:
            if reference is None:
                return 1.0
            known = self._changes([self.pixels[row]], [self.pixels[reference]])[0]
            self._known[row, reference] = known
        return known


class Streams:
    """All streams of a Cacher, the one seen last at the end, and the pools of their references."""

    def __init__(self, config: CacherConfig, make_pool: Pools) -> None:
        self.counts = Counts()
        self._config = config
        self._make_pool = make_pool
        self._pools: dict[FrameKind, ReferencePool] = {}
        self._streams: OrderedDict[Hashable, Stream] = OrderedDict()
        self._keeps = config.refresh_interval > 1 or config.policy is not None
        self._undo: dict[Hashable, tuple[int, int] | None] = {}
        self._batch = Counts()

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._streams)

    def __contains__(self, name: object) -> bool:
        return name in self._streams

    @property
    def bytes(self) -> int:
        """Bytes of references held."""
        pixels = sum(_bytes(stream.pixels) for stream in self._streams.values())
        return pixels + sum(pool.bytes for pool in self._pools.values())

    def forget(self, *names: Hashable) -> None:
        """Forget these streams."""
        for name in names:
            self._release(self._streams.pop(name))
        self._drop_empty_pools()

    def clear(self) -> None:
        """Forget everything."""
        self._streams.clear()
        self._pools.clear()

    def plan(self, names: Sequence[Hashable], frames: Frames) -> tuple[Plan, ...]:
        """Decide the rows of one batch, exactly as if they came one by one.

        Ends with `commit` or `roll_back`.

        Args:
            names: the stream of each row; rows of one stream are in time order.
            frames: of the batch.

        Returns:
            A plan for each kind of frame in the batch.
        """
        self._drop_broken(names)
        frames.look_ahead([self._pixels(*row) for row in zip(names, frames.kinds, strict=True)])
        drafts: dict[FrameKind, _Draft] = {}
        for row, (name, kind) in enumerate(zip(names, frames.kinds, strict=True)):
            draft = drafts.get(kind)
            if draft is None:
                draft = drafts[kind] = _Draft(self._pool(kind))
            self._place(row, name, draft, frames)
        plans = tuple(draft.plan(kind) for kind, draft in drafts.items())
        for draft in drafts.values():
            for stream, _ in draft.written.values():
                stream.row = None
            draft.pool.reserve()
        self._drop_empty_pools()
        return plans

    def commit(self, plans: Sequence[Plan], depth: int, finite: Sequence[Tensor | None]) -> None:
        """Count a batch that has run.

        Args:
            plans: as `plan` returned them.
            depth: how many layers ran.
            finite: for each plan, whether each kept reference came out finite, bool [written].
        """
        for plan, flags in zip(plans, finite, strict=True):
            for number, (stream, slot) in enumerate(
                zip(plan.keepers, plan.destinations, strict=True)
            ):
                plan.pool.written(slot, depth)
                stream.finite = None if flags is None else flags[number]
        self.counts = self.counts.plus(**vars(self._batch))
        self._end()
        self._fit()

    def roll_back(self) -> None:
        """Take back the frames of a batch that failed, and the references of its streams.

        Some layers may hold the new reference and others the old one. A batch that was never
        planned has nothing to take back.
        """
        for name, before in self._undo.items():
            stream = self._streams.get(name)
            if stream is None:
                continue
            self._release(stream)
            stream.row = None
            if before is None:
                del self._streams[name]
            else:
                stream.frames, stream.phase = before
        # Streams that had to go are gone all the same.
        self.counts = self.counts.plus(evictions=self._batch.evictions)
        self._drop_empty_pools()
        self._end()

    def _end(self) -> None:
        """Leave nothing of this batch to the next, which may fail before it is planned."""
        self._undo = {}
        self._batch = Counts()

    def _place(self, row: int, name: Hashable, draft: _Draft, frames: Frames) -> None:
        stream = self._streams.get(name)
        self._undo.setdefault(name, None if stream is None else (stream.frames, stream.phase))
        if stream is None:
            self._make_place()
            stream = self._streams[name] = Stream(phase=self._phase())
        self._streams.move_to_end(name)
        if stream.kept and stream.pool is not draft.pool:
            self._release(stream)
            self._count(restarts=1)
        stream.age += 1
        if self._refreshes(row, name, stream, frames):
            place = draft.whole(row)
            pixels = None if frames.pixels is None else frames.pixels[row]
            if not frames.finite(row):
                self._release(stream)
                self._count(rejected=1)
            elif self._keeps:
                self._keep(stream, draft.pool, pixels)
                draft.written[row] = (stream, place)
                stream.row = row
            stream.age = 0
            stream.finite = None
            self._count(refreshes=1)
        elif stream.row is not None:
            draft.join(row, stream.row)
        else:
            draft.reuse(row, stream.slot)
        stream.frames += 1
        self._count(frames=1)

    def _refreshes(self, row: int, name: Hashable, stream: Stream, frames: Frames) -> bool:
        config = self._config
        if not stream.kept:
            return True
        if config.policy is not None:
            frame = StreamFrame(
                name, stream.frames, stream.age, lambda: frames.changed(row, stream.row)
            )
            if config.policy.refreshes(frame):
                return True
        elif (stream.frames + stream.phase) % config.refresh_interval == 0:
            return True
        limit = config.refresh_on_change
        if limit is not None and frames.changed(row, stream.row) > limit:
            self._count(changes=1)
            return True
        return False

    def _phase(self) -> int:
        """Choose how early a new stream refreshes: with as few others as can be."""
        interval = self._config.refresh_interval
        if not self._config.stagger:
            return 0
        taken = Counter((other.frames + other.phase) % interval for other in self._streams.values())
        # The stream is asked about next at its second frame.
        return min(range(interval), key=lambda phase: taken[(1 + phase) % interval])

    def _keep(self, stream: Stream, pool: ReferencePool, pixels: Tensor | None) -> None:
        """Give a stream a slot, taking those of others away where there are too many."""
        if not stream.kept:
            self._make_room(stream, pool.slot_bytes + _bytes(pixels))
            stream.pool, stream.slot = pool, pool.acquire()
        stream.pixels = None if pixels is None else pixels.clone()

    def _make_place(self) -> None:
        """Forget streams until another may be known."""
        most = self._config.max_streams
        while most is not None and len(self._streams) >= most:
            self._evict(next(iter(self._streams)))

    def _make_room(self, stream: Stream, size: int) -> None:
        """Forget streams until another reference of this size may be held."""
        limit = self._config.max_bytes
        if limit is None:
            return
        if size > limit:
            raise ValueError(
                f"max_bytes must be at least {size}, one reference of these frames, but is {limit}"
            )
        held = sum(map(_held, self._streams.values()))
        for name in tuple(self._streams) if held + size > limit else ():
            other = self._streams[name]
            if other is not stream and other.kept:
                held -= _held(other)
                self._evict(name)
            if held + size <= limit:
                break

    def _evict(self, name: Hashable) -> None:
        stream = self._streams.pop(name)
        self._release(stream)
        stream.row = None
        self._count(evictions=1)

    def _release(self, stream: Stream) -> None:
        if stream.pool is not None:
            stream.pool.release(stream.slot)
        stream.pool = stream.finite = stream.pixels = stream.row = None

    def _drop_broken(self, names: Sequence[Hashable]) -> None:
        """Take away references that have turned out not to be finite."""
        asked = {
            id(stream): stream
            for stream in map(self._streams.get, names)
            if stream is not None and stream.finite is not None
        }
        flags = [stream.finite for stream in asked.values() if stream.finite is not None]
        if not flags:
            return
        devices = {flag.device for flag in flags}
        if len(devices) == 1:
            answers = torch.stack(flags).tolist()
        else:
            answers = [bool(flag) for flag in flags]
        for stream, fine in zip(asked.values(), answers, strict=True):
            stream.finite = None
            if not fine:
                self._release(stream)
                self._count(rejected=1)

    def _pixels(self, name: Hashable, kind: FrameKind) -> Tensor | None:
        """Return the pixels of a stream's reference; None: it has none for frames of this kind."""
        stream = self._streams.get(name)
        # Pixels on the device that a model has left could not be compared with new ones.
        if stream is None or stream.pool is None or stream.pool.kind != kind:
            return None
        return stream.pixels

    def _pool(self, kind: FrameKind) -> ReferencePool:
        pool = self._pools.get(kind)
        if pool is None:
            pool = self._pools[kind] = self._make_pool(kind)
        return pool

    def _drop_empty_pools(self) -> None:
        for kind in [kind for kind, pool in self._pools.items() if pool.in_use == 0]:
            del self._pools[kind]

    def _fit(self) -> None:
        """Give back the memory of free slots where it counts against `max_bytes`."""
        limit = self._config.max_bytes
        if limit is None or self.bytes <= limit:
            return
        for pool in self._pools.values():
            moved = pool.shrink()
            for stream in self._streams.values():
                if stream.pool is pool:
                    stream.slot = moved.get(stream.slot, stream.slot)

    def _count(self, **more: int) -> None:
        self._batch = self._batch.plus(**more)


def _bytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()


def _held(stream: Stream) -> int:
    return 0 if stream.pool is None else stream.pool.slot_bytes + _bytes(stream.pixels)


@dataclass(eq=False)
class _Draft:
    """A plan in the making."""

    pool: ReferencePool
    rows: list[int] = field(default_factory=list)
    refresh: list[int] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)
    stored: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    depth: int | None = None
    joined: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    written: dict[int, tuple[Stream, int]] = field(default_factory=dict)

    def whole(self, row: int) -> int:
        """Compute a row whole; return its place among those that are."""
        place = self.places[row] = len(self.refresh)
        self.refresh.append(self._local(row))
        return place

    def join(self, row: int, source: int) -> None:
        """Hold a row against one that is computed whole."""
        self.joined.append(self._local(row))
        self.sources.append(self.places[source])

    def reuse(self, row: int, slot: int) -> None:
        """Hold a row against a reference in the pool."""
        self.stored.append(self._local(row))
        self.slots.append(slot)
        depth = self.pool.depth(slot)
        self.depth = depth if self.depth is None else min(depth, self.depth)

    def plan(self, kind: FrameKind) -> Plan:
        # A stream's last refresh stays; one that was evicted since, or refreshed again, does not.
        self.written = {
            row: (stream, place)
            for row, (stream, place) in self.written.items()
            if stream.row == row and stream.pool is self.pool
        }
        return Plan(
            kind=kind,
            pool=self.pool,
            rows=tuple(self.rows),
            refresh=tuple(self.refresh),
            stored=tuple(self.stored),
            slots=tuple(self.slots),
            joined=tuple(self.joined),
            sources=tuple(self.sources),
            written=tuple(place for _, place in self.written.values()),
            destinations=tuple(stream.slot for stream, _ in self.written.values()),
            keepers=tuple(stream for stream, _ in self.written.values()),
            depth=self.depth,
        )

    def _local(self, row: int) -> int:
        self.rows.append(row)
        return len(self.rows) - 1
