"""Files, cameras and network streams, decoded with PyAV (FFmpeg)."""

from __future__ import annotations

import errno
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlsplit

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from stc_stream.video.clock import Clock
from stc_stream.video.frames import Frame, Opened, VideoError, Warn

# FFmpeg would render these as pictures of their text.
_NOT_VIDEO_FORMATS = frozenset({"tty", "bin", "idf", "xbin"})


def open_file(path: Path, warn: Warn) -> Opened:
    """Open a video file.

    Raises:
        VideoError: it is no video, or one that FFmpeg cannot read.
    """
    try:
        # Of a relative name with a colon, FFmpeg would take what is before it for a protocol.
        container = av.open(str(path.absolute()))
    except av.error.PermissionError:
        raise VideoError(f"{path} may not be read: check its permissions") from None
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(
            f"{path} is not a video that can be read ({_reason(error)}): give a video file, "
            "whole enough to hold its header"
        ) from None
    return _opened(container, path.name, f"{path}", warn)


def open_camera(number: int, timeout: float, warn: Warn) -> Opened:
    """Open a camera by its number: /dev/videoN on Linux, AVFoundation's on macOS.

    Raises:
        VideoError: there is no such camera, or it cannot be opened.
    """
    device, driver = f"/dev/video{number}", "v4l2"
    # AVFMT_FLAG_NONBLOCK, which has no name there: a driver that waits cannot be interrupted.
    options = {"fflags": "+4"}
    if platform.system() == "Darwin":
        device, driver = str(number), "avfoundation"
        options["framerate"] = "30"
    elif not Path(device).exists():
        there = ", ".join(sorted(_cameras(), key=int)) or "none"
        raise VideoError(f"there is no camera {number} ({device}); cameras here: {there}")
    try:
        container = av.open(device, format=driver, options=options, timeout=timeout)
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(
            f"camera {number} ({device}) cannot be opened ({_reason(error)}): check that nothing "
            "else uses it, and that it may be read"
        ) from None
    name = f"camera {number}"
    return _opened(container, name, name, warn, timeout, live=True)


def open_url(url: str, timeout: float, warn: Warn) -> Opened:
    """Open a network stream; RTSP goes over TCP, which loses no packets.

    Raises:
        VideoError: it does not answer within `timeout` seconds, or gives no video.
    """
    name = _without_password(url)
    live = url.lower().startswith(("rtsp", "rtmp"))
    options = {"rtsp_transport": "tcp"} if url.lower().startswith("rtsp") else {}
    try:
        container = av.open(url, options=options, timeout=timeout)
    except (av.error.ExitError, av.error.TimeoutError):
        raise _silent(name, timeout) from None
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(
            f"{name} cannot be opened ({_reason(error)}): check the address and the network"
        ) from None
    return _opened(container, name, name, warn, timeout, live=live)


def _opened(
    container: InputContainer,
    name: str,
    shown: str,
    warn: Warn,
    timeout: float | None = None,
    *,
    live: bool = False,
) -> Opened:
    streams = [stream for stream in container.streams.video if not _is_cover(stream)]
    if not streams or container.format.name in _NOT_VIDEO_FORMATS:
        container.close()
        raise VideoError(f"{shown} is not a video: it has no stream of pictures")
    stream = streams[0]
    # A decoder that works ahead on all cores would disturb whoever measures between two frames.
    stream.codec_context.thread_count = 1
    rate = float(stream.average_rate) if stream.average_rate else None
    end = None if live else _end(container, stream)
    frames = _decoded(container, stream, shown, end, Clock(rate), timeout, warn)
    # Where frames come at no steady rate, nobody knows how many there are in a part.
    steady = rate if rate and stream.base_rate and abs(stream.base_rate / rate - 1) < 0.01 else None
    # AVI counts chunks, of which some are empty.
    counts = not live and container.format.name != "avi"
    count = stream.frames or None if counts else None
    return Opened(name, frames, container.close, count, steady, live)


def _decoded(
    container: InputContainer,
    stream: VideoStream,
    name: str,
    end: float | None,
    clock: Clock,
    timeout: float | None,
    warn: Warn,
) -> Iterator[Frame]:
    index = 0
    damaged = False
    ended: str | None = None
    packets = _packets(container, stream, timeout)
    while ended is None:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except av.FFmpegError as error:
            silent = timeout is not None and isinstance(
                error, av.error.ExitError | av.error.TimeoutError
            )
            if silent and not index:
                raise _silent(name, timeout or 0.0) from None
            # Reading cannot go on, but frames already read may still be inside the decoder.
            ended = f"it did not answer for {timeout:g} s" if silent else _reason(error)
            packet = None
        failed = False
        with _errors() as errors:
            try:
                pictures = stream.codec_context.decode(packet)
            except av.error.EOFError:
                break
            except av.FFmpegError:
                pictures, failed = [], True
        # Some decoders leave a broken frame out and only log it.
        if failed or errors or any(picture.is_corrupt for picture in pictures):
            damaged = _damaged(index, damaged, warn)
        for picture in pictures:
            time = clock.read(picture)
            yield Frame(index, time, _pixels(picture))
            index += 1
    seconds = clock.end if end is None or clock.start is None else end - clock.start
    if ended is not None:
        warn(f"the video could not be read beyond frame {max(index - 1, 0)} ({ended})")
    elif seconds - clock.end > max(0.25, clock.step):
        warn(
            f"the video is cut short: it ends at frame {index - 1}, {clock.time:.2f} s of the "
            f"{seconds:.2f} s that its header promises"
        )


def _packets(
    container: InputContainer, stream: VideoStream, timeout: float | None
) -> Iterator[Packet[VideoStream]]:
    """Read the packets of a stream; wait for a camera that has none yet.

    Raises:
        av.error.TimeoutError: it had none for `timeout` seconds.
    """
    since = monotonic()
    while True:
        try:
            for packet in container.demux(stream):
                yield packet
                since = monotonic()
        except av.error.BlockingIOError:
            if timeout is not None and monotonic() - since > timeout:
                raise av.error.TimeoutError(errno.ETIMEDOUT, "timed out") from None
            sleep(0.002)
        else:
            return


@contextmanager
def _errors() -> Iterator[list[tuple[int, str, str]]]:
    """Collect what FFmpeg logs as an error inside, in this thread."""
    level, skips = av.logging.get_level(), av.logging.get_skip_repeated()
    if level is None or level < av.logging.ERROR:
        av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    errors: list[tuple[int, str, str]] = []
    try:
        with av.logging.Capture() as logs:
            yield errors
    finally:
        errors += [log for log in logs if log[0] <= av.logging.ERROR]
        av.logging.set_skip_repeated(skips)
        av.logging.set_level(level)


def _damaged(index: int, already: bool, warn: Warn) -> bool:
    # "near": a decoder holds a few frames back, so an error comes before the frames before it.
    if not already:
        warn(f"the video is damaged near frame {index}: what could be decoded was streamed")
    return True


def _pixels(picture: VideoFrame) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = picture.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    # A phone held upright writes its pictures lying down, with a note to turn them.
    note: Any = picture.side_data.get("DISPLAYMATRIX")
    if note is None:
        return pixels
    # A pixel at (x, y) is shown at (a x + c y, b x + d y), but for a shift.
    a, b, _, c, d = np.frombuffer(note, np.int32)[:5]
    if abs(int(a)) >= abs(int(b)):
        right, down = a, d
    else:
        pixels = pixels.swapaxes(0, 1)
        right, down = c, b
    return np.ascontiguousarray(pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1])


def _end(container: InputContainer, stream: VideoStream) -> float | None:
    """Return the stamp, in seconds, at which the header says that the stream ends."""
    # Matroska counts lengths from its clock's zero, wherever the first frame is.
    matroska = "matroska" in container.format.name
    start = 0.0
    if stream.start_time and stream.time_base and not matroska:
        start = float(stream.start_time * stream.time_base)
    if stream.duration is not None and stream.time_base is not None:
        return start + float(stream.duration * stream.time_base)
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if tag:
        return start + int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    # The container's own length is that of its longest stream.
    if container.duration is not None and len(container.streams) == 1:
        return start + float(container.duration * Fraction(1, av.time_base))
    return None


def _is_cover(stream: VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _cameras() -> list[str]:
    return [path.name[5:] for path in Path("/dev").glob("video*") if path.name[5:].isdecimal()]


def _reason(error: Exception) -> str:
    if isinstance(error, av.FFmpegError):
        if error.errno == errno.ECONNREFUSED:
            return "connection refused"
        return (error.strerror or "unknown error").rstrip(".").lower()
    return str(error).partition("\n")[0]


def _silent(name: str, timeout: float) -> VideoError:
    return VideoError(
        f"{name} did not answer for {timeout:g} s: check that it is on and can be reached"
    )


def _without_password(url: str) -> str:
    try:
        secret = urlsplit(url).password
    except ValueError:
        return url
    return url.replace(f":{secret}@", ":…@") if secret else url
