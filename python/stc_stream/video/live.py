"""A live source whose frames come faster than they are taken: some wait, the oldest are skipped."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Condition, Thread

from stc_stream.video.frames import Frame


@dataclass(frozen=True)
class LiveCounts:
    """What became of the frames of a live source.

    Attributes:
        room: how many may wait.
        came: how many came.
        skipped: how many of them were skipped, since newer ones had no room.
        most_waiting: the most that waited at once.
    """

    room: int
    came: int
    skipped: int
    most_waiting: int


class LiveQueue(Iterator[Frame]):
    """Reads a source in a thread of its own, and gives the frames that wait, oldest first.

    A frame that comes while `room` frames wait takes the place of the oldest. What the source
    raises is raised once all frames before it were taken. Reading begins with the first `next`.

    Args:
        source: the frames; nothing else takes them from here on.
        room: how many may wait; 1: the newest alone.
    """

    def __init__(self, source: Iterator[Frame], room: int) -> None:
        self._source = source
        self._room = room
        self._waiting: deque[Frame] = deque()
        self._changed = Condition()
        self._came = self._skipped = self._most = 0
        self._ended = False
        self._error: BaseException | None = None
        self._thread: Thread | None = None

    @property
    def counts(self) -> LiveCounts:
        """What became of the frames so far."""
        with self._changed:
            return LiveCounts(self._room, self._came, self._skipped, self._most)

    def __next__(self) -> Frame:
        if self._thread is None and not self._ended:
            self._thread = Thread(target=self._read, name="live source", daemon=True)
            self._thread.start()
        with self._changed:
            while not self._waiting and not self._ended:
                self._changed.wait()
            if self._waiting:
                return self._waiting.popleft()
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def close(self, seconds: float) -> bool:
        """Stop reading; say whether the source is free again, at most `seconds` later."""
        with self._changed:
            self._ended = True
            self._waiting.clear()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def _read(self) -> None:
        try:
            for frame in self._source:
                if not self._add(frame):
                    return
        except Exception as error:
            # Whoever takes the frames is told, in their own thread.
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify()

    def _add(self, frame: Frame) -> bool:
        with self._changed:
            if self._ended:
                return False
            self._came += 1
            if len(self._waiting) == self._room:
                self._waiting.popleft()
                self._skipped += 1
            self._waiting.append(frame)
            self._most = max(self._most, len(self._waiting))
            self._changed.notify()
        return True
