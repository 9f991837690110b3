"""Make the clip that `stc stream` plays when it is given no video.

Forty frames of photographs in motion, 12 a second: a fixed camera looks at a cup on a
table while a print of a cat is pushed past it; then a cut, and the camera pans slowly over a
portrait. Every frame carries a little sensor noise, as a real camera's does. The pictures are those
that the scikit-image package ships (`skimage.data`):

- coffee: Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0
- chelsea: Stefan van der Walt, CC0
- astronaut: NASA Great Images, Eileen Collins, public domain

Run: python examples/make_sample_clip.py [OUTPUT.mp4]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT = 576, 384
FRAMES_A_SECOND = 12
TABLE_FRAMES, PAN_FRAMES = 25, 15
NOISE = 1.5
SAMPLE = Path(__file__).resolve().parents[1] / "python" / "stc_stream" / "data" / "sample.mp4"


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else SAMPLE
    noise = np.random.default_rng(0)
    with av.open(str(target), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=FRAMES_A_SECOND)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        # One thread: the same bytes on every machine.
        stream.options = {"crf": "23", "preset": "slow", "g": "24", "threads": "1"}
        for picture in [*table(), *pan()]:
            pixels = np.asarray(picture, np.float32)
            pixels = pixels + noise.normal(0.0, NOISE, pixels.shape)
            image = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


def table() -> Iterator[Image.Image]:
    """A fixed camera; a print comes in from the left, passes below the cup and leaves."""
    background = Image.fromarray(skimage.data.coffee()).resize((WIDTH, HEIGHT), Image.LANCZOS)
    card = cat_print()
    for frame in range(TABLE_FRAMES):
        progress = frame / (TABLE_FRAMES - 1)
        x = -60 + 720 * progress
        y = 292 + 14 * math.sin(3 * progress)
        angle = 8 - 22 * progress
        yield lay(background, card, x, y, angle)


def pan() -> Iterator[Image.Image]:
    """A camera that moves over a portrait, a few pixels a frame."""
    portrait = Image.fromarray(skimage.data.astronaut())
    window = (390, 260)
    for frame in range(PAN_FRAMES):
        progress = frame / (PAN_FRAMES - 1)
        left, top = 100 - 62 * progress, 4 + 30 * progress
        box = (left, top, left + window[0], top + window[1])
        yield portrait.resize((WIDTH, HEIGHT), Image.BICUBIC, box=box)


def cat_print() -> Image.Image:
    """A photograph on paper, with its white border."""
    photograph = Image.fromarray(skimage.data.chelsea()).resize((165, 110), Image.LANCZOS)
    paper = Image.new("RGBA", (185, 130), (244, 241, 234, 255))
    paper.paste(photograph, (10, 10))
    ImageDraw.Draw(paper).rectangle((0, 0, 184, 129), outline=(214, 208, 196, 255))
    return paper


def lay(
    background: Image.Image, card: Image.Image, x: float, y: float, angle: float
) -> Image.Image:
    """Return `background` with `card` on it, its centre at (x, y), and the shadow it throws."""
    radians = math.radians(angle)
    cos, sin = math.cos(radians), math.sin(radians)
    middle_x, middle_y = card.width / 2, card.height / 2
    to_card = (
        cos, sin, middle_x - cos * x - sin * y,
        -sin, cos, middle_y + sin * x - cos * y,
    )  # fmt: skip
    placed = card.transform((WIDTH, HEIGHT), Image.AFFINE, to_card, resample=Image.BICUBIC)
    shadow = Image.new("L", (WIDTH, HEIGHT), 0)
    shadow.paste(placed.getchannel("A").point(lambda alpha: alpha // 2), (5, 6))
    picture = background.copy()
    picture.paste((20, 8, 4), mask=shadow.filter(ImageFilter.GaussianBlur(5)))
    picture.paste(placed, mask=placed.getchannel("A"))
    return picture


if __name__ == "__main__":
    main()
