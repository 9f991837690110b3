"""Which frames of a batch are computed densely, exactly as if they came one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from stc_stream.cacher.config import REFRESH_WINDOW, CacherConfig
from stc_stream.cacher.frames import BatchFrames, Pair
from stc_stream.cacher.plan import BatchPlan, Budget, PlanDraft
from stc_stream.cacher.policy import StreamFrame
from stc_stream.cacher.references import FrameKind
from stc_stream.cacher.streams import MakePool, Stream, StreamTable
from stc_stream.cacher.waits import LateFlags

_WINDOW = (1 << REFRESH_WINDOW) - 1


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


class RefreshScheduler:
    """Decides what becomes of each frame of a batch, and counts what was decided.

    Args:
        config: the Cacher's settings.
        make_pool: makes the pool of a kind of frames.
    """

    def __init__(self, config: CacherConfig, make_pool: MakePool) -> None:
        self._config = config
        self._table = StreamTable(make_pool, config.max_streams, config.max_bytes)
        self._keeps = config.refresh_interval > 1 or config.policy is not None
        self._counts: Counter[str] = Counter()
        self._batch: Counter[str] = Counter()
        self._undo: dict[Hashable, tuple[int, int, int] | None] = {}

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._table)

    def __contains__(self, name: object) -> bool:
        return name in self._table

    @property
    def counts(self) -> Counts:
        """What all batches came to that have run."""
        known = {"evictions": self._table.evictions, "rejected": self._table.rejected}
        return Counts(**(self._counts + Counter(known)))

    @property
    def bytes(self) -> int:
        """Bytes of references held."""
        return self._table.bytes

    def forget(self, *names: Hashable) -> None:
        """Forget these streams."""
        self._table.forget(*names)

    def clear(self) -> None:
        """Forget everything but the counts."""
        self._table.clear()

    def plan(self, names: Sequence[Hashable], frames: BatchFrames) -> tuple[BatchPlan, ...]:
        """Decide the frames of one batch, exactly as if they came one by one.

        Ends with `commit` or `roll_back`.

        Args:
            names: the stream of each frame; frames of one stream are in time order.
            frames: of the batch.

        Returns:
            A plan for each kind of frame in the batch.
        """
        if frames.watched:
            # Asked of a frame that becomes the reference of one after it.
            finite = len(set(names)) < len(names)
            frames.look_ahead(self._pairs(names, frames), finite)
        drafts: dict[FrameKind, PlanDraft] = {}
        for frame, (name, kind) in enumerate(zip(names, frames.kinds, strict=True)):
            draft = drafts.get(kind)
            if draft is None:
                draft = drafts[kind] = PlanDraft(kind, self._table.pool(kind))
            self._place(frame, name, draft, frames)
        plans = []
        for kind, draft in drafts.items():
            prefix = draft.pool.prefix_tokens
            plan = draft.finish(Budget.of(self._config, kind.tokens, prefix))
            for stream in plan.saved_streams:
                stream.frame = None
            draft.pool.reserve()
            draft.pool.use()
            plans.append(plan)
        self._table.drop_empty_pools()
        return tuple(plans)

    def commit(
        self, plans: Sequence[BatchPlan], depth: int, finite: Sequence[Tensor | None]
    ) -> None:
        """Count a batch that has run.

        Args:
            plans: as `plan` returned them.
            depth: how many layers ran.
            finite: for each plan, whether each saved frame was finite and came out so, bool
                [saved], not waited for; None: none is saved.
        """
        for plan, flags in zip(plans, finite, strict=True):
            if plan.saved is None or flags is None:
                continue
            late = LateFlags(flags)
            for place, entry in enumerate(plan.saved.entries):
                plan.pool.written(entry, depth)
                plan.saved_streams[place].finite = (late, place)
        self._counts.update(self._batch)
        self._end()
        self._table.fit()

    def roll_back(self) -> None:
        """Take back the frames of a batch that failed, and the references of its streams.

        Some layers may hold the new reference and others the old one. A batch that was never
        planned has nothing to take back; streams that had to go for it are gone all the same.
        """
        for name, before in self._undo.items():
            stream = self._table.get(name)
            if stream is None:
                continue
            self._table.release(stream)
            if before is None:
                self._table.forget(name)
            else:
                stream.frames, stream.phase, stream.recent = before
        self._table.drop_empty_pools()
        self._end()

    def _end(self) -> None:
        """Leave nothing of this batch to the next, which may fail before it is planned."""
        self._undo = {}
        self._batch.clear()

    def _place(self, frame: int, name: Hashable, draft: PlanDraft, frames: BatchFrames) -> None:
        known = self._table.get(name)
        before = None if known is None else (known.frames, known.phase, known.recent)
        self._undo.setdefault(name, before)
        stream = self._table.see(name)
        if known is None:
            stream.phase = self._phase(stream)
        self._reject(stream, frames)
        if stream.holds_reference and stream.pool is not draft.pool:
            self._table.release(stream)
            self._count("restarts")
        stream.age += 1
        if self._refreshes(frame, name, stream, frames):
            draft.refresh(frame)
            if self._keeps:
                pixels = None if frames.pixels is None else frames.pixels[frame]
                self._table.hold(stream, draft.pool, pixels)
                draft.save(frame, stream)
                stream.frame = frame
            stream.age = 0
            stream.finite = None
            self._count("refreshes")
        elif stream.frame is not None:
            draft.use_batch(frame, stream.frame)
        else:
            draft.use_pool(frame, stream.entry)
        stream.frames += 1
        self._count("frames")

    def _reject(self, stream: Stream, frames: BatchFrames) -> None:
        """Take a stream's reference away if its frame was not finite, as far as that is known.

        Only a reference in this same batch is waited for. One from a batch before is known once
        that batch has run; until then it counts as finite.
        """
        in_batch = stream.frame is not None and not frames.finite(stream.frame)
        if in_batch or stream.broken:
            self._table.release(stream)
            self._count("rejected", int(in_batch))

    def _refreshes(self, frame: int, name: Hashable, stream: Stream, frames: BatchFrames) -> bool:
        stream.recent = (stream.recent << 1) & _WINDOW
        if not stream.holds_reference or self._scheduled(stream):
            return True
        config, asked = self._config, False
        if config.policy is not None:
            seen = StreamFrame(
                name, stream.frames, stream.age, lambda: frames.changed(frame, stream.frame)
            )
            asked = config.policy.refreshes(seen)
        limit, changed = config.refresh_on_change, False
        if not asked and limit is not None and frames.watched:
            changed = frames.changed(frame, stream.frame) > limit
        if not asked and not changed:
            return False
        allowed = config.allowed_refreshes
        if allowed is not None and stream.recent.bit_count() >= allowed:
            self._count("forbidden")
            return False
        stream.recent |= 1
        self._count("changes", int(changed))
        return True

    def _scheduled(self, stream: Stream) -> bool:
        config = self._config
        return config.policy is None and (
            (stream.frames + stream.phase) % config.refresh_interval == 0
        )

    def _phase(self, stream: Stream) -> int:
        """Choose how early a new stream refreshes: with as few others as can be."""
        interval = self._config.refresh_interval
        if not self._config.stagger:
            return 0
        others = [other for other in self._table.values() if other is not stream]
        taken = Counter((other.frames + other.phase) % interval for other in others)
        # The stream is asked about next at its second frame.
        return min(range(interval), key=lambda phase: taken[(1 + phase) % interval])

    def _pairs(self, names: Sequence[Hashable], frames: BatchFrames) -> list[Pair]:
        """Return each frame with all that may be its reference.

        A frame's reference is less than `refresh_interval` frames back, which bounds them. Under a
        policy nothing does: there, frames of the same batch are compared when it is asked for.
        """
        pixels = frames.pixels
        if pixels is None:
            return []
        bounded, most = self._config.policy is None, self._config.refresh_interval - 1
        found: list[Pair] = []
        earlier: dict[Hashable, list[int]] = {}
        for frame, (name, kind) in enumerate(zip(names, frames.kinds, strict=True)):
            before = earlier.setdefault(name, [])
            stream = self._table.get(name)
            held = _pixels(stream, kind)
            age = 0 if stream is None else stream.age + len(before) + 1
            if held is not None and (age <= most or not bounded):
                found.append((frame, None, held))
            if bounded:
                near = before[max(0, len(before) - most) :]
                found += [(frame, other, pixels[other]) for other in near]
            before.append(frame)
        return [pair for pair in found if pair[2].shape == pixels[pair[0]].shape]

    def _count(self, what: str, by: int = 1) -> None:
        self._batch[what] += by


def _pixels(stream: Stream | None, kind: FrameKind) -> Tensor | None:
    """Return the pixels of a stream's reference; None: it has none for frames of this kind."""
    # Pixels on the device that a model has left could not be compared with new ones.
    if stream is None or stream.pool is None or stream.pool.kind != kind:
        return None
    return stream.pixels
