"""Times of decoded frames, which rise whatever the stamps in a file do."""

from __future__ import annotations

from av.video.frame import VideoFrame


class Clock:
    """Reads each frame's seconds since the first one.

    Some containers stamp frames in the order in which they are decoded, and some clocks start again
    (a camera that restarts, files that were joined). A stamp that doesn't rise is a new start, one
    frame after the last.

    Args:
        rate: frames a second, as the container says; None: it doesn't.

    Attributes:
        start: the first frame's own stamp, in seconds; None: it had none.
        time: of the last frame read, in seconds.
        step: seconds between two frames where no stamp tells.
        end: when the last frame read stops being shown.
    """

    def __init__(self, rate: float | None) -> None:
        self.start: float | None = None
        self.time = 0.0
        self.step = 1 / (rate or 25.0)
        self.end = 0.0
        self._offset: float | None = None
        self._last = {"pts": _NEVER, "dts": _NEVER}
        self._faults = {"pts": 0, "dts": 0}

    def read(self, picture: VideoFrame) -> float:
        """Return the time of the next frame, in the order in which frames are shown."""
        stamp = self._stamp(picture)
        if self._offset is None:
            self.start = stamp
            self._offset = stamp or 0.0
        elif stamp is None or stamp - self._offset <= self.time:
            self.time += self.step
            if stamp is not None:
                self._offset = stamp - self.time
        else:
            self.time = stamp - self._offset
        shown = picture.duration * picture.time_base if picture.time_base else 0
        self.end = self.time + (float(shown) or self.step)
        return self.time

    def _stamp(self, picture: VideoFrame) -> float | None:
        """Return the presentation stamp, or the decoding one where that went back less often."""
        stamps = {"pts": picture.pts, "dts": picture.dts}
        for name, stamp in stamps.items():
            if stamp is not None:
                self._faults[name] += stamp <= self._last[name]
                self._last[name] = stamp
        best = stamps["pts"]
        if best is None or (
            stamps["dts"] is not None and self._faults["pts"] > self._faults["dts"]
        ):
            best = stamps["dts"]
        return None if best is None or not picture.time_base else float(best * picture.time_base)


_NEVER = -(2**63)
