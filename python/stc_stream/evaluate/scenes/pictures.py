"""What a clip is filmed on: photographs that scikit-image ships, and textures made from a seed."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stc_stream.evaluate.scenes.drawing import CANVAS, Picture

Split = Literal["train", "validation", "test"]

PHOTOGRAPHS: dict[Split, tuple[str, ...]] = {
    "train": (
        "astronaut.png",
        "camera.png",
        "clock_motion.png",
        "coffee.png",
        "coins.png",
        "grass.png",
        "hubble_deep_field.jpg",
        "retina.jpg",
        "text.png",
    ),
    "validation": ("brick.png", "cell.png"),
    "test": ("chelsea.png", "gravel.png", "ihc.png", "rocket.jpg"),
}
"""Files of `skimage.data`; no split has another's.

By scikit-image's word each is in the public domain, under CC0 or without known restrictions.
"""

TEXTURE_SHARE = 0.5
"""Share of the backgrounds that are textures."""


def background(split: Split, generator: np.random.Generator) -> Picture:
    """Return a background, float32 [CANVAS, CANVAS, 3] of 0 to 255.

    Raises:
        ModuleNotFoundError: scikit-image or Pillow isn't installed.
    """
    if generator.random() < TEXTURE_SHARE:
        return _texture(generator)
    names = PHOTOGRAPHS[split]
    picture = _photograph(names[generator.integers(len(names))])
    largest = min(picture.shape[:2])
    side = int(generator.integers(min(CANVAS, largest), largest + 1))
    y, x = (int(generator.integers(0, length - side + 1)) for length in picture.shape[:2])
    canvas = _resized(picture[y : y + side, x : x + side])
    if generator.random() < 0.5:
        canvas = canvas[:, ::-1]
    tint = generator.uniform(0.75, 1.05, 3).astype(np.float32)
    return canvas * tint


@cache
def _photograph(name: str) -> NDArray[np.uint8]:
    for module, package in (("skimage", "scikit-image"), ("PIL", "Pillow")):
        if find_spec(module) is None:
            raise ModuleNotFoundError(
                f"the photographs of the scenes need scikit-image and Pillow, but {package} isn't "
                "installed: pip install 'stc-kernels[scenes]'",
                name=module,
            )
    from PIL import Image

    # Found, not imported: scikit-image alone imports scipy and more.
    found = find_spec("skimage")
    assert found is not None and found.origin is not None
    with Image.open(Path(found.origin).parent / "data" / name) as image:
        return np.asarray(image.convert("RGB"))


def _resized(picture: NDArray[np.uint8]) -> Picture:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize((CANVAS, CANVAS), Image.Resampling.BILINEAR), np.float32)


def _texture(generator: np.random.Generator) -> Picture:
    """Return two colours mixed by a field: clouds of several sizes, waves, or tiles."""
    kind = generator.integers(3)
    rows, columns = np.mgrid[:CANVAS, :CANVAS].astype(np.float32)
    if kind == 0:
        field = sum(_clouds(generator, size) / scale for scale, size in ((1, 5), (2, 11), (4, 41)))
    elif kind == 1:
        angle, length = generator.uniform(0, np.pi), generator.uniform(10, 60)
        along = rows * np.sin(angle) + columns * np.cos(angle)
        field = np.sin(2 * np.pi * along / length) + 0.5 * _clouds(generator, 11)
    else:
        side = int(generator.integers(9, 40))
        tiles = generator.normal(size=(CANVAS // side + 2, CANVAS // side + 2))
        field = tiles[(rows // side).astype(int), (columns // side).astype(int)]
    field = np.clip(0.5 + field / 4, 0, 1)[..., None]
    # Muted, so that nothing of it looks like a square.
    one, other = 128 + 0.6 * (generator.uniform(0, 255, (2, 3)) - 128)
    grain = generator.normal(0, generator.uniform(0, 12), (CANVAS, CANVAS, 1))
    mixed: Picture = (one + field * (other - one) + grain).astype(np.float32)
    return mixed


def _clouds(generator: np.random.Generator, size: int) -> Picture:
    """Return `size` × `size` random values, drawn out smoothly to the canvas."""
    values = generator.normal(size=(size, size))
    at = np.linspace(0, size - 1, CANVAS)
    low = np.minimum(at.astype(int), size - 2)
    part = at - low
    lines = values[low] * (1 - part)[:, None] + values[low + 1] * part[:, None]
    smooth: Picture = lines[:, low] * (1 - part) + lines[:, low + 1] * part
    return smooth
