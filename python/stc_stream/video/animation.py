"""Animated WebP, which FFmpeg cannot decode, read with Pillow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from stc_stream.video.frames import Frame, Opened, VideoError, Warn


def is_animation(path: Path) -> bool:
    """Tell whether a file is an animated WebP."""
    with path.open("rb") as file:
        head = file.read(30)
    # The second bit of the first byte of an extended header says that there are frames.
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and bool(head[20] & 2)


def open_animation(path: Path, warn: Warn) -> Opened:
    """Open an animated WebP.

    Raises:
        VideoError: it is cut short or damaged.
    """
    try:
        image = Image.open(path)
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise VideoError(f"{path} is not a video that can be read ({reason})") from None
    count: int = getattr(image, "n_frames", 1)
    return Opened(path.name, _frames(image, count, warn), image.close, count, None)


def _frames(image: Image.Image, count: int, warn: Warn) -> Iterator[Frame]:
    time = 0.0
    for index in range(count):
        try:
            image.seek(index)
            pixels = np.array(image.convert("RGB"))
        except (EOFError, OSError) as error:
            reason = str(error).partition("\n")[0]
            warn(f"the video could not be read beyond frame {max(index - 1, 0)} ({reason})")
            return
        yield Frame(index, time, pixels)
        # What is to be shown for no time is shown for 100 ms, as FFmpeg has it for GIF.
        time += (image.info.get("duration") or 100) / 1000
