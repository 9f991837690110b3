"""Which frames of a stream are worth looking at; chosen as it runs, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from stc_stream.evaluate.summary import FrameNumbers, FrameResult

MOST_PICTURES = 6
WIDEST = 768

# Rivals kept for each moment, so that one frame need not stand for two.
_RIVALS = 3


@dataclass(frozen=True)
class Moment:
    """A frame, and why it was chosen."""

    title: str
    result: FrameResult


class Gallery:
    """Keeps the frames that show most: offered each frame in order, holds a handful."""

    def __init__(self) -> None:
        self._best: dict[str, list[tuple[float, FrameResult]]] = {name: [] for name in _MOMENTS}
        self._previous: FrameNumbers | None = None
        self._stale = False

    def offer(self, result: FrameResult) -> None:
        """Look at the next frame of the stream."""
        numbers = result.numbers
        self._stale = (self._stale or numbers.scene_cut) and not numbers.refreshed
        for title, score in _MOMENTS.items():
            if self._stale and score is not _scene_cut:
                # Until the next refresh, all after a cut shows the cut.
                continue
            value = score(numbers, self._previous)
            rivals = self._best[title]
            if value is None or (len(rivals) == _RIVALS and value <= rivals[-1][0]):
                continue
            result = _smaller(result)
            rivals.append((value, result))
            # Python's sort is stable: the earlier of two equals stays first.
            rivals.sort(key=lambda rival: -rival[0])
            del rivals[_RIVALS:]
        self._previous = numbers

    def moments(self) -> tuple[Moment, ...]:
        """Return the chosen frames in order of time, no frame twice."""
        chosen: dict[int, Moment] = {}
        for title, rivals in self._best.items():
            for _, result in rivals:
                if result.numbers.index not in chosen:
                    chosen[result.numbers.index] = Moment(title, result)
                    break
        first = list(chosen.values())[:MOST_PICTURES]
        return tuple(sorted(first, key=lambda moment: moment.result.numbers.index))


def _scene_cut(frame: FrameNumbers, previous: FrameNumbers | None) -> float | None:
    return frame.motion if frame.scene_cut and frame.motion is not None else None


def _after_refresh(frame: FrameNumbers, previous: FrameNumbers | None) -> float | None:
    if frame.refreshed or previous is None or not previous.refreshed:
        return None
    return frame.motion


def _moving_object(frame: FrameNumbers, previous: FrameNumbers | None) -> float | None:
    if frame.refreshed or frame.motion is None or frame.moving is None or frame.moving > 0.4:
        return None
    return frame.motion


def _most_motion(frame: FrameNumbers, previous: FrameNumbers | None) -> float | None:
    return None if frame.refreshed else frame.motion


def _least_motion(frame: FrameNumbers, previous: FrameNumbers | None) -> float | None:
    return None if frame.refreshed or frame.motion is None else -frame.motion


def _closest(frame: FrameNumbers, previous: FrameNumbers | None) -> float | None:
    return None if frame.refreshed or frame.cosine is None else frame.cosine


def _furthest(frame: FrameNumbers, previous: FrameNumbers | None) -> float | None:
    return None if frame.refreshed or frame.cosine is None else -frame.cosine


def _refresh(frame: FrameNumbers, previous: FrameNumbers | None) -> float | None:
    return -float(frame.index) if frame.refreshed else None


# In order of importance.
_MOMENTS: Mapping[str, Callable[[FrameNumbers, FrameNumbers | None], float | None]] = {
    "A refresh: all is computed": _refresh,
    "Scene cut": _scene_cut,
    "Part of the picture moves": _moving_object,
    "Most motion": _most_motion,
    "Furthest from dense": _furthest,
    "Right after a refresh": _after_refresh,
    "Least motion": _least_motion,
    "Closest to dense": _closest,
}


def _smaller(result: FrameResult) -> FrameResult:
    height, width = result.view.image.shape[:2]
    scale = WIDEST / max(width, height)
    if scale >= 1:
        return result
    size = (max(1, math.floor(width * scale)), max(1, math.floor(height * scale)))
    image = np.asarray(Image.fromarray(result.view.image).resize(size, Image.Resampling.LANCZOS))
    return replace(result, view=replace(result.view, image=image))
