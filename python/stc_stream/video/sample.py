"""Frames to run: the sample clip where videos can be read, else a scene drawn here."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib.resources import as_file, files
from itertools import islice

import numpy as np
from numpy.typing import NDArray

_SIDE = 384
_SYNTHETIC_FRAMES = 40


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames, uint8 [H, W, 3] each, and what to call them."""

    name: str
    images: tuple[NDArray[np.uint8], ...]


def sample_clip(frames: int | None = None) -> Clip:
    """Return the sample clip, or a synthetic one where PyAV is not installed.

    Args:
        frames: how many at most; None: all.
    """
    if importlib.util.find_spec("av") is None:
        return synthetic_clip(frames or _SYNTHETIC_FRAMES)
    from stc_stream.video import open_video

    sample = files("stc_stream").joinpath("data/sample.mp4")
    with as_file(sample) as path, open_video(str(path)) as video:
        return Clip("the sample clip", tuple(frame.image for frame in islice(video, frames)))


def synthetic_clip(frames: int) -> Clip:
    """Return a window that drifts over a smooth scene, a pixel a frame, with a sensor's noise."""
    random = np.random.default_rng(0)
    coarse = random.uniform(0, 255, (13, 13, 3))
    scene = _enlarged(coarse, 2 * _SIDE)
    images = []
    for number in range(frames):
        start = number % _SIDE
        window = scene[start : start + _SIDE, start : start + _SIDE]
        noisy = window + random.normal(0, 1.5, window.shape)
        images.append(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
    return Clip("a synthetic scene that drifts (PyAV is not installed)", tuple(images))


def _enlarged(coarse: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    places = np.linspace(0, len(coarse) - 1, side)
    grid = np.arange(len(coarse))
    for axis in (0, 1):
        coarse = np.apply_along_axis(lambda line: np.interp(places, grid, line), axis, coarse)
    return coarse
