"""The streams that a Cacher knows, and which of them hold a reference."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

from torch import Tensor

from stc_stream.cacher.references import FrameKind, ReferencePool
from stc_stream.cacher.waits import LateFlags

MakePool = Callable[[FrameKind], ReferencePool]


@dataclass(eq=False)
class Stream:
    """A stream's frames so far, and its reference.

    Attributes:
        frames: frames it has had.
        phase: how many frames early its refreshes come, under `stagger`.
        age: frames since its reference was computed.
        recent: of its last 16 frames, which were computed densely because a change or a policy
            asked for it: a bit each, the last one lowest.
        pool, entry: where its reference is kept; no pool: nowhere.
        finite: tells whether the frame that became its reference was finite, and came out so, with
            its place among the flags; None: it did.
        pixels: the pixels of its reference, where changes are watched.
        frame: while a batch is planned, the frame of it that is its reference; None: the reference
            is in the pool.
    """

    frames: int = 0
    phase: int = 0
    age: int = 0
    recent: int = 0
    pool: ReferencePool | None = None
    entry: int = 0
    finite: tuple[LateFlags, int] | None = None
    pixels: Tensor | None = None
    frame: int | None = None

    @property
    def holds_reference(self) -> bool:
        """Whether the stream holds a place for a reference."""
        return self.pool is not None

    @property
    def broken(self) -> bool:
        """Whether its reference is known not to be finite; asking waits for nothing."""
        if self.finite is None:
            return False
        flags, place = self.finite
        return flags.there and not flags[place]

    @property
    def bytes(self) -> int:
        """Bytes that its reference takes."""
        return 0 if self.pool is None else self.pool.entry_bytes + _bytes(self.pixels)

    def release(self) -> None:
        """Give its reference up."""
        if self.pool is not None:
            self.pool.release(self.entry)
        self.pool = self.finite = self.pixels = self.frame = None


class StreamTable:
    """All streams, the one seen last at the end, and the pools of their references.

    Args:
        make_pool: makes the pool of a kind of frames.
        max_streams: streams known at most; None: all.
        max_bytes: bytes of references held at most; None: all.
    """

    def __init__(
        self, make_pool: MakePool, max_streams: int | None = None, max_bytes: int | None = None
    ) -> None:
        self.evictions = 0
        self._rejected = 0
        self._make_pool = make_pool
        self._max_streams = max_streams
        self._max_bytes = max_bytes
        self._pools: dict[FrameKind, ReferencePool] = {}
        self._streams: OrderedDict[Hashable, Stream] = OrderedDict()

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._streams)

    def __contains__(self, name: object) -> bool:
        return name in self._streams

    def get(self, name: Hashable) -> Stream | None:
        """Return a stream; None: it is not known."""
        return self._streams.get(name)

    def values(self) -> Iterator[Stream]:
        """Yield all streams."""
        return iter(self._streams.values())

    @property
    def bytes(self) -> int:
        """Bytes of references held."""
        pixels = sum(_bytes(stream.pixels) for stream in self.values())
        return pixels + sum(pool.bytes for pool in self._pools.values())

    @property
    def rejected(self) -> int:
        """References known not to be finite: those that are held, and those that were."""
        return self._rejected + sum(stream.broken for stream in self.values())

    def pool(self, kind: FrameKind) -> ReferencePool:
        """Return the pool of a kind of frames."""
        pool = self._pools.get(kind)
        if pool is None:
            pool = self._pools[kind] = self._make_pool(kind)
        return pool

    def see(self, name: Hashable) -> Stream:
        """Return a stream of which there is a frame; a new one may have others forgotten."""
        stream = self._streams.get(name)
        if stream is None:
            while self._max_streams is not None and len(self) >= self._max_streams:
                self._evict(next(iter(self._streams)))
            stream = self._streams[name] = Stream()
        self._streams.move_to_end(name)
        return stream

    def hold(self, stream: Stream, pool: ReferencePool, pixels: Tensor | None) -> None:
        """Give a stream an entry, taking those of others away where there are too many.

        Raises:
            ValueError: one reference is larger than `max_bytes`.
        """
        if not stream.holds_reference:
            self._make_room(stream, pool.entry_bytes + _bytes(pixels))
            stream.pool, stream.entry = pool, pool.acquire()
        stream.pixels = None if pixels is None else pixels.clone()

    def release(self, stream: Stream) -> None:
        """Take a stream's reference away, and remember that it was broken if it was."""
        self._rejected += stream.broken
        stream.release()

    def forget(self, *names: Hashable) -> None:
        """Forget these streams."""
        for name in names:
            self.release(self._streams.pop(name))
        self.drop_empty_pools()

    def clear(self) -> None:
        """Forget everything but what was counted."""
        self._rejected = self.rejected
        self._streams.clear()
        self._pools.clear()

    def drop_empty_pools(self) -> None:
        """Give back the memory of pools in which no stream has a reference."""
        for kind in [kind for kind, pool in self._pools.items() if pool.in_use == 0]:
            del self._pools[kind]

    def fit(self) -> None:
        """Give back the memory of free entries where it counts against `max_bytes`."""
        if self._max_bytes is None or self.bytes <= self._max_bytes:
            return
        for pool in self._pools.values():
            moved = pool.shrink()
            for stream in self.values():
                if stream.pool is pool:
                    stream.entry = moved.get(stream.entry, stream.entry)

    def _make_room(self, stream: Stream, size: int) -> None:
        """Forget streams until another reference of this size may be held."""
        limit = self._max_bytes
        if limit is None:
            return
        if size > limit:
            raise ValueError(
                f"max_bytes must be at least {size}, one reference of these frames, but is {limit}"
            )
        held = sum(other.bytes for other in self.values())
        for name in tuple(self._streams) if held + size > limit else ():
            other = self._streams[name]
            if other is not stream and other.holds_reference:
                held -= other.bytes
                self._evict(name)
            if held + size <= limit:
                break

    def _evict(self, name: Hashable) -> None:
        # What was broken is not counted: of a frame of the batch itself it would not be known.
        self._streams.pop(name).release()
        self.evictions += 1


def _bytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
