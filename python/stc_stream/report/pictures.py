"""Pictures of single frames: what was recomputed and kept, and how similar the keys were."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stc_stream.evaluate.summary import FrameView
from stc_stream.report.drawing import colours

TINT = (255, 122, 0)
OUTLINE = (0, 229, 255)
WIDTH = 576
TALLEST = 1152
COLOUR_MAP = "magma"

_GREY = np.array([0.299, 0.587, 0.114], np.float32)


def overlay(view: FrameView) -> Image.Image:
    """Draw a frame with its recomputed patches tinted and its kept patches outlined.

    A patch is tinted the stronger, the more layers recomputed it; one that no layer did is grey
    and dim. The outline goes around each group of patches that the Pruner kept. The picture is
    576 pixels wide, or, of a frame more than twice as tall as wide, 1152 tall (see `size`).
    """
    image = Image.fromarray(view.image)
    width, height = size(view)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS), np.float32)
    rows, columns = _patch_of(height, view.grid[0]), _patch_of(width, view.grid[1])
    share = view.recomputed[rows][:, columns, None]
    reused = 0.72 * (pixels @ _GREY)[..., None] + 14.0
    tinted = 0.52 * pixels + 0.48 * np.array(TINT, np.float32)
    drawn = (1 - share) * reused + share * tinted
    if not view.recomputed.min() < 1:
        # All of a refresh frame is recomputed: a strong tint would only hide it.
        drawn = 0.82 * pixels + 0.18 * np.array(TINT, np.float32)
    kept = view.kept[rows][:, columns]
    inside = kept & ~_shrunk(kept, 2)
    halo = _shrunk(~kept, 0) & ~_shrunk(~kept, 1)
    drawn[halo] *= 0.45
    drawn[inside] = OUTLINE
    return Image.fromarray(np.clip(np.rint(drawn), 0, 255).astype(np.uint8))


def similarity_map(
    similarity: NDArray[np.float32], lowest: float, size: tuple[int, int]
) -> Image.Image:
    """Draw a map of similarities as large as the picture that it is of, patch over patch.

    Args:
        similarity: float32 [rows, columns]; NaN is drawn as the lowest.
        lowest: it and 1 are the ends of the scale.
        size: width and height in pixels, from `size`.
    """
    scaled = np.clip((similarity - lowest) / max(1 - lowest, 1e-6), 0, 1)
    drawn = colours(COLOUR_MAP, np.nan_to_num(scaled))
    rows, columns = _patch_of(size[1], similarity.shape[0]), _patch_of(size[0], similarity.shape[1])
    return Image.fromarray(drawn[rows][:, columns])


def size(view: FrameView) -> tuple[int, int]:
    """Return the width and height, in pixels, at which a frame is drawn."""
    height, width = view.image.shape[:2]
    scale = min(WIDTH / width, TALLEST / height)
    return max(1, round(scale * width)), max(1, round(scale * height))


def colour_bar() -> str:
    """Return the colours of `similarity_map`, low to high, as a CSS gradient."""
    steps = colours(COLOUR_MAP, np.linspace(0, 1, 9, dtype=np.float32))
    return f"linear-gradient(to right, {', '.join(f'rgb({r} {g} {b})' for r, g, b in steps)})"


def inline(image: Image.Image, kind: str) -> str:
    """Return an image as a data URI; `kind` is "jpeg" or "png"."""
    buffer = io.BytesIO()
    if kind == "jpeg":
        image.save(buffer, "JPEG", quality=86, subsampling=0, optimize=True)
    else:
        image.save(buffer, "PNG", optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _patch_of(pixels: int, patches: int) -> NDArray[np.intp]:
    return np.arange(pixels) * patches // pixels


def _shrunk(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    shrunk: NDArray[np.bool_] = mask.copy()
    for axis in (0, 1):
        for shift in range(1, by + 1):
            for way in (shift, -shift):
                # The frame's own edge closes an outline, too.
                shrunk &= _shifted(mask, way, axis)
    return shrunk


def _shifted(mask: NDArray[np.bool_], by: int, axis: int) -> NDArray[np.bool_]:
    moved = np.zeros_like(mask)
    source = [slice(None), slice(None)]
    target = [slice(None), slice(None)]
    source[axis] = slice(None, -by) if by > 0 else slice(-by, None)
    target[axis] = slice(by, None) if by > 0 else slice(None, by)
    moved[tuple(target)] = mask[tuple(source)]
    return moved
