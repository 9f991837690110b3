"""A folder of images as a video, read with Pillow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from stc_stream.video.frames import Frame, Opened, VideoError, Warn

# What FFmpeg, too, takes for a sequence of images that has no clock.
IMAGES_A_SECOND = 25.0
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def open_folder(path: Path, warn: Warn) -> Opened:
    """Open the images of a folder (not of folders in it), in natural order of their names.

    Raises:
        VideoError: the folder holds no image.
    """
    images = sorted(
        (entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES), key=_natural
    )
    if not images:
        raise VideoError(
            f"the folder {path} holds no image: put files ending in {', '.join(SUFFIXES)} there"
        )
    name = path.resolve().name or str(path)
    return Opened(name, _images(images, warn), _nothing, len(images), IMAGES_A_SECOND)


def _images(paths: Sequence[Path], warn: Warn) -> Iterator[Frame]:
    for index, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                picture = _in_colour(ImageOps.exif_transpose(image))
        except (
            Image.DecompressionBombError,
            UnidentifiedImageError,
            OSError,
            ValueError,
            SyntaxError,
        ) as error:
            reason = str(error).partition("\n")[0]
            warn(f"frame {index}, {path.name}, is left out: {reason}")
            continue
        yield Frame(index, index / IMAGES_A_SECOND, np.array(picture))


def _in_colour(image: Image.Image) -> Image.Image:
    """Convert to 8 bits a colour, where Pillow itself would cut off what is above 255.

    Raises:
        ValueError: the range of its values is not known.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image.convert("RGB")
    values = np.asarray(image).astype(np.float64)
    top = 1.0 if image.mode == "F" else 65535.0
    if not (values.min() >= 0 and values.max() <= top):
        kind = "floating-point" if image.mode == "F" else "integer"
        raise ValueError(
            f"its {kind} pixels are outside 0 to {top:g}, so what is white is not known"
        )
    return Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8)).convert("RGB")


def _natural(path: Path) -> list[tuple[int, int | str]]:
    parts = re.split(r"(\d+)", path.name.casefold())
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts if part]


def _nothing() -> None:
    return None
