"""What every source of frames speaks in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Warn = Callable[[str], None]


class VideoError(Exception):
    """A source that cannot be opened, or that gives no frames; one line, with the remedy."""


class DamagedVideoWarning(UserWarning):
    """A source that is damaged or cut short, and at which frame; it is streamed all the same."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a video.

    Attributes:
        index: its place in the source, from 0, counting the frames that sampling left out.
        time: seconds from the first frame.
        image: uint8 [H, W, 3], red, green, blue.
    """

    index: int
    time: float
    image: NDArray[np.uint8]


@dataclass(frozen=True)
class Opened:
    """A source that has been opened.

    Attributes:
        name: what to call it in a table.
        frames: all of its frames, in order.
        close: lets go of it; may be called twice.
        count: how many frames it has, where that is known.
        rate: frames a second, where that is known.
        live: its frames come whether or not anybody takes them.
    """

    name: str
    frames: Iterator[Frame]
    close: Callable[[], None]
    count: int | None
    rate: float | None
    live: bool = False
