"""The streams of a Cacher: which rows of a batch are computed whole, and who holds a reference."""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stc_stream.cacher.config import REFRESH_WINDOW, CacherConfig
from stc_stream.cacher.policy import StreamFrame
from stc_stream.cacher.references import FrameKind, ReferencePool

Pools = Callable[[FrameKind], ReferencePool]
_WINDOW = (1 << REFRESH_WINDOW) - 1


@dataclass(eq=False)
class Stream:
    """A stream's frames so far, and its reference.

    Attributes:
        frames: frames it has had.
        phase: how many frames early its refreshes come, under `stagger`.
        age: frames since its reference was computed.
        recent: of its last 16 frames, which were computed whole because a change or a policy
            asked for it: a bit each, the last one lowest.
        pool, slot: where its reference is kept; no pool: nowhere.
        finite: whether the frame that became its reference came out finite, a bool tensor not
            waited for yet; None: it did.
        pixels: the pixels of its reference, where changes are watched.
        row: while a batch is planned, the row that is its reference; None: it is in the pool.
    """

    frames: int = 0
    phase: int = 0
    age: int = 0
    recent: int = 0
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
    forbidden: int = 0
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
        finite: tells of all rows whether they are finite, bool [rows].
        pixels: of each row; None: they were not seen.
        shares: (rows, references) → share of patches that differ, for each pair, float32; None:
            changes are not watched.
    """

    def __init__(
        self,
        kinds: Sequence[FrameKind],
        finite: Callable[[], Tensor],
        pixels: Sequence[Tensor] | None = None,
        shares: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor] | None = None,
    ) -> None:
        self.kinds = kinds
        self.pixels = pixels
        self._ask_finite = finite
        self._finite: Sequence[float] | None = None
        self._shares = shares
        self._known: dict[tuple[int, int | None], float] = {}

    @property
    def watched(self) -> bool:
        """Whether it can be told how much of a row changed."""
        return self.pixels is not None and self._shares is not None

    def finite(self, row: int) -> bool:
        """Tell whether all of a row's tokens are finite."""
        if self._finite is None:
            self._finite = _fetched([self._ask_finite()])[0]
        return bool(self._finite[row])

    def look_ahead(
        self, flags: Sequence[Tensor], pairs: Sequence[tuple[int, int | None, Tensor]]
    ) -> list[bool]:
        """Return flags; where rows are watched, learn in the same wait all that will be asked.

        Args:
            flags: bool tensors of one value.
            pairs: row, what `changed` will call its reference, the reference's pixels.
        """
        wanted = [torch.stack([flag.to(flags[0].device) for flag in flags])] if flags else []
        if not self.watched:
            return [bool(flag) for each in _fetched(wanted) for flag in each]
        answers = _fetched([*wanted, self._ask_finite(), *self._compared(pairs)])
        if pairs:
            self._learn(pairs, answers.pop())
        self._finite = answers.pop()
        return [bool(flag) for each in answers for flag in each]

    def changed(self, row: int, reference: int | None) -> float:
        """Return the share of a row's patches that changed.

        Args:
            row: the row.
            reference: the row that it is held against; None: its stream's reference before the
                batch.
        """
        if self._shares is None:
            raise RuntimeError(
                "the policy asked for changed(), but has no attribute watches_change = True"
            )
        if self.pixels is None:
            raise RuntimeError(
                "the policy asked for changed(), but the layers were called with other frames "
                "than the tower's patch embedding: call the whole tower"
            )
        if (row, reference) not in self._known and reference is not None:
            # Only a policy gets here; all else was asked for ahead.
            pairs = [(row, reference, self.pixels[reference])]
            self._learn(pairs, _fetched(self._compared(pairs))[0])
        return self._known.get((row, reference), 1.0)

    def _compared(self, pairs: Sequence[tuple[int, int | None, Tensor]]) -> list[Tensor]:
        """Return the share of each pair, as one tensor, or nothing where there are no pairs."""
        if not pairs or self.pixels is None or self._shares is None:
            return []
        rows, _, references = zip(*pairs, strict=True)
        return [self._shares([self.pixels[row] for row in rows], references)]

    def _learn(
        self, pairs: Sequence[tuple[int, int | None, Tensor]], shares: Sequence[float]
    ) -> None:
        for (row, reference, _), share in zip(pairs, shares, strict=True):
            self._known[row, reference] = share


class Streams:
    """All streams of a Cacher, the one seen last at the end, and the pools of their references."""

    def __init__(self, config: CacherConfig, make_pool: Pools) -> None:
        self.counts = Counts()
        self._config = config
        self._make_pool = make_pool
        self._pools: dict[FrameKind, ReferencePool] = {}
        self._streams: OrderedDict[Hashable, Stream] = OrderedDict()
        self._keeps = config.refresh_interval > 1 or config.policy is not None
        self._undo: dict[Hashable, tuple[int, int, int] | None] = {}
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
        self._look_ahead(names, frames)
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
                stream.frames, stream.phase, stream.recent = before
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
        before = None if stream is None else (stream.frames, stream.phase, stream.recent)
        self._undo.setdefault(name, before)
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
        stream.recent = (stream.recent << 1) & _WINDOW
        if not stream.kept or self._scheduled(stream):
            return True
        config, asked = self._config, False
        if config.policy is not None:
            frame = StreamFrame(
                name, stream.frames, stream.age, lambda: frames.changed(row, stream.row)
            )
            asked = config.policy.refreshes(frame)
        limit, changed = config.refresh_on_change, False
        if not asked and limit is not None and frames.watched:
            changed = frames.changed(row, stream.row) > limit
        if not asked and not changed:
            return False
        allowed = config.allowed_refreshes
        if allowed is not None and stream.recent.bit_count() >= allowed:
            self._count(forbidden=1)
            return False
        stream.recent |= 1
        self._count(changes=int(changed))
        return True

    def _scheduled(self, stream: Stream) -> bool:
        config = self._config
        return config.policy is None and (
            (stream.frames + stream.phase) % config.refresh_interval == 0
        )

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

    def _look_ahead(self, names: Sequence[Hashable], frames: Frames) -> None:
        """Learn all that planning may ask, and take away references that were not finite."""
        asked = {
            id(stream): stream
            for stream in map(self._streams.get, names)
            if stream is not None and stream.finite is not None
        }
        flags = [stream.finite for stream in asked.values() if stream.finite is not None]
        answers = frames.look_ahead(flags, self._pairs(names, frames))
        for stream, fine in zip(asked.values(), answers, strict=True):
            stream.finite = None
            if not fine:
                self._release(stream)
                self._count(rejected=1)

    def _pairs(
        self, names: Sequence[Hashable], frames: Frames
    ) -> list[tuple[int, int | None, Tensor]]:
        """Return each row with all that may be its reference: see `Frames.look_ahead`.

        A frame's reference is less than `refresh_interval` frames back, which bounds them. Under a
        policy nothing does: there, rows of the same batch are compared when it is asked for.
        """
        pixels = frames.pixels
        if pixels is None or not frames.watched:
            return []
        bounded, most = self._config.policy is None, self._config.refresh_interval - 1
        found: list[tuple[int, int | None, Tensor]] = []
        earlier: dict[Hashable, list[int]] = {}
        for row, (name, kind) in enumerate(zip(names, frames.kinds, strict=True)):
            rows = earlier.setdefault(name, [])
            held, stream = self._pixels(name, kind), self._streams.get(name)
            age = 0 if stream is None else stream.age + len(rows) + 1
            if held is not None and (age <= most or not bounded):
                found.append((row, None, held))
            if bounded:
                near = rows[max(0, len(rows) - most) :]
                found += [(row, other, pixels[other]) for other in near]
            rows.append(row)
        return [pair for pair in found if pair[2].shape == pixels[pair[0]].shape]

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


def _fetched(parts: Sequence[Tensor]) -> list[list[float]]:
    """Return what tensors of one dimension hold, with one wait for the device."""
    if not parts:
        return []
    device = parts[-1].device
    numbers: list[float] = torch.cat([part.to(device, torch.float32) for part in parts]).tolist()
    ends = list(itertools.accumulate(part.shape[0] for part in parts))
    return [numbers[end - part.shape[0] : end] for part, end in zip(parts, ends, strict=True)]


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
