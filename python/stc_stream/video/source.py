"""The one way in: what a source is, and which of its frames are wanted."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from stc_stream.video.frames import DamagedVideoWarning, Frame, Opened, VideoError, Warn
from stc_stream.video.live import LiveQueue

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SECONDS_TO_CLOSE = 12.0
_REMEDY = "give a video file, a folder of images, a camera number or an rtsp:// address"


class FrameStream(Iterator[Frame]):
    """The frames of one source, in order; close it, or use it in a ``with``.

    Attributes:
        name: what to call the source: a file's or a folder's name, "camera 0", a URL without its
            password.
        total: how many frames will come, as far as that is known; None for a live source.
        end: when the last of them stops being shown, in seconds, as far as that is known.
        live: frames come whether or not anybody takes them: a camera, rtsp, rtmp.
        queue: of a live source, the frames that wait; None: they are read as they are taken.
    """

    def __init__(
        self, opened: Opened, fps: float | None, frames: int | None, waiting: int | None = None
    ) -> None:
        self.name = opened.name
        self.total = _total(opened, fps, frames)
        self.end = _end(opened, fps, frames)
        self.live = opened.live
        self._close = opened.close
        self.queue: LiveQueue | None = None
        if opened.live and waiting is not None:
            self.queue = LiveQueue(opened.frames, waiting)
        self._frames = _chosen(self.queue or opened.frames, fps, frames)

    def __next__(self) -> Frame:
        return next(self._frames)

    def __enter__(self) -> FrameStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file or device."""
        self._frames = iter(())
        # A device that is read in another thread can't be let go of.
        if self.queue is None or self.queue.close(_SECONDS_TO_CLOSE):
            self._close()


def open_video(
    source: str | Path | int,
    *,
    fps: float | None = None,
    frames: int | None = None,
    timeout: float = 10.0,
    warn: Warn | None = None,
    waiting: int | None = None,
) -> FrameStream:
    """Open a source of frames and return an iterator of `Frame` (image uint8 [H, W, 3], RGB).

    Args:
        source: a video file, a folder of images (in natural order: 2 before 10), the number of a
            camera (or the number in a string), or a URL (``rtsp://…``, ``http://…``).
        fps: take at most this many frames a second of the source's own clock; None takes all. The
            images of a folder are 1/25 s apart.
        frames: stop after this many; None goes on to the end.
        timeout: seconds that a network stream or a camera may stay silent.
        warn: called with one line when the source turns out damaged or cut short, with the frame
            where it does; by default a `DamagedVideoWarning`.
        waiting: of a live source, frames that may wait for whoever takes them: it is then read in
            a thread of its own, and the oldest that wait are skipped where there is no room
            (`FrameStream.queue` counts). None: it is read as frames are taken. `frames` and `fps`
            are of those that are taken.

    Raises:
        ValueError: `fps`, `frames`, `timeout` or `waiting` is not positive.
        VideoError: there is no such source, it is no video, or its decoder is not installed. A
            source that ends before its first frame raises this from the first ``next``.
    """
    if fps is not None and not (fps > 0 and math.isfinite(fps)):
        raise ValueError(f"fps must be a number above 0, but is {fps:g}")
    if frames is not None and frames < 1:
        raise ValueError(f"frames must be at least 1, but is {frames}")
    if not timeout > 0:
        raise ValueError(f"timeout must be a number of seconds above 0, but is {timeout:g}")
    if waiting is not None and waiting < 1:
        raise ValueError(f"waiting must be at least 1, but is {waiting}")
    return FrameStream(_open(source, timeout, warn or _warn), fps, frames, waiting)


def _open(source: str | Path | int, timeout: float, warn: Warn) -> Opened:
    # Imported here, so that each needs its own package and no other.
    from stc_stream.video import animation, decoder, folder

    text = str(source)
    if not text:
        raise VideoError(f"the source is empty: {_REMEDY}")
    if text.isascii() and text.isdecimal():
        try:
            return decoder.open_camera(int(text), timeout, warn)
        except VideoError as error:
            if not Path(text).exists():
                raise
            raise VideoError(f"{error}; the file or folder of that name is ./{text}") from None
    if _URL.match(text):
        return decoder.open_url(text, timeout, warn)
    path = Path(text)
    try:
        if path.is_dir():
            return folder.open_folder(path, warn)
        if path.exists():
            # Not of a pipe: what is read of it is gone.
            if path.is_file() and animation.is_animation(path):
                return animation.open_animation(path, warn)
            return decoder.open_file(path, warn)
    except PermissionError:
        raise VideoError(f"{text} may not be read: check its permissions") from None
    except (OSError, ValueError) as error:
        # An OSError's own text would repeat the whole path.
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(
            f"{text!r} is not a path that can be opened ({reason.lower()}): {_REMEDY}"
        ) from None
    raise VideoError(f"there is no file or folder {text}: {_REMEDY}")


def _warn(message: str) -> None:
    warnings.warn(message, DamagedVideoWarning, stacklevel=2)


def _chosen(source: Iterator[Frame], fps: float | None, frames: int | None) -> Iterator[Frame]:
    taken, slot = 0, -1
    for frame in source:
        if fps is not None:
            # A clock cut into slots of 1/fps, the first frame of each.
            this_slot = _slot(frame.time, fps)
            if this_slot <= slot:
                continue
            slot = this_slot
        taken += 1
        yield frame
        if taken == frames:
            return
    if not taken:
        raise VideoError("not one frame could be decoded: give a video that has at least one")


def _total(opened: Opened, fps: float | None, frames: int | None) -> int | None:
    total = opened.count
    if total and fps is not None:
        # Without a steady rate, nobody knows how many of the frames are taken.
        total = min(total, _slot((total - 1) / opened.rate, fps) + 1) if opened.rate else None
    if frames is not None and (total is None or frames < total):
        total = frames
    return total


def _end(opened: Opened, fps: float | None, frames: int | None) -> float | None:
    if opened.live or not opened.rate:
        return None
    ends = [opened.count / opened.rate] if opened.count else []
    if frames is not None:
        ends.append(frames / min(fps or opened.rate, opened.rate))
    return min(ends, default=None)


def _slot(time: float, fps: float) -> int:
    # Half a millisecond of grace, since containers round their clocks.
    return math.floor((time + 5e-4) * fps)
