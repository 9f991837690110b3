"""Frames in chunks and questions at their moments: the order in which a stream is taken in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stc_stream.video import Frame


@dataclass(frozen=True)
class Question:
    """Something to ask about a stream.

    Attributes:
        text: the question.
        time: seconds of the video at which it is asked, behind all frames up to then; None: at the
            end.

    Raises:
        ValueError: a time that is negative or no number.
    """

    text: str
    time: float | None = None

    def __post_init__(self) -> None:
        if self.time is not None and not (self.time >= 0 and math.isfinite(self.time)):
            raise ValueError(f"time must be a number of seconds from 0 on, but is {self.time:g}")


@dataclass(frozen=True, eq=False)
class Chunk:
    """Frames that are fed together: in a row, and of one size."""

    frames: tuple[Frame, ...]

    @property
    def images(self) -> NDArray[np.uint8]:
        """The frames' pictures, uint8 [F, H, W, 3]."""
        return np.stack([frame.image for frame in self.frames])

    @property
    def times(self) -> list[float]:
        """The frames' times, in seconds."""
        return [frame.time for frame in self.frames]


def moments(
    frames: Iterable[Frame], questions: Sequence[Question], chunk: int, end: float | None = None
) -> Iterator[Chunk | Question]:
    """Give the frames in chunks, and each question between the frames where it belongs.

    A chunk is smaller than asked for before a question, before a frame of another size, and at the
    end. Questions without a time come last, in their order; those after the end do not come.

    Args:
        frames: in order of time.
        questions: in any order.
        chunk: frames to feed together.
        end: when the last frame stops being shown, in seconds; None: not known, and as long after
            it as it came after the frame before.
    """
    timed = sorted((each for each in questions if each.time is not None), key=_time)
    waiting: list[Frame] = []
    last, step = -1.0, 0.0
    for frame in frames:
        step, last = (frame.time - last if last >= 0 else 0.0), frame.time
        due = bool(timed) and _time(timed[0]) < frame.time
        other = bool(waiting) and waiting[0].image.shape != frame.image.shape
        if waiting and (due or other):
            yield Chunk(tuple(waiting))
            waiting = []
        while timed and _time(timed[0]) < frame.time:
            yield timed.pop(0)
        waiting.append(frame)
        if len(waiting) == chunk:
            yield Chunk(tuple(waiting))
            waiting = []
    if waiting:
        yield Chunk(tuple(waiting))
    end = last + step if end is None else max(end, last)
    yield from (question for question in timed if _time(question) <= end)
    yield from (question for question in questions if question.time is None)


def _time(question: Question) -> float:
    assert question.time is not None
    return question.time
