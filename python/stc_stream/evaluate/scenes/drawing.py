"""From a script to pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stc_stream.evaluate.scenes.script import FRAME_SIZE, SIZE, Script, State

Picture = NDArray[np.float32]

CANVAS = 160
"""Rows and columns of what the camera can look at, in pixels."""

RGB = {
    "red": (215, 40, 40),
    "green": (40, 175, 65),
    "blue": (45, 80, 225),
    "yellow": (235, 215, 45),
    "purple": (165, 55, 205),
    "white": (245, 245, 245),
}
_DARK = 25.0
_FONT = {
    0: ("###", "#.#", "#.#", "#.#", "###"),
    1: (".#.", "##.", ".#.", ".#.", "###"),
    2: ("###", "..#", "###", "#..", "###"),
    3: ("###", "..#", ".##", "..#", "###"),
    4: ("#.#", "#.#", "###", "..#", "..#"),
    5: ("###", "#..", "###", "..#", "###"),
    6: ("###", "#..", "###", "#.#", "###"),
    7: ("###", "..#", ".#.", ".#.", ".#."),
    8: ("###", "#.#", "###", "#.#", "###"),
    9: ("###", "#.#", "###", "..#", "###"),
}


def draw(
    script: Script, canvases: Sequence[Picture], generator: np.random.Generator
) -> NDArray[np.uint8]:
    """Draw a clip.

    Args:
        script: what happens in it.
        canvases: backgrounds, float32 [CANVAS, CANVAS, 3] of 0 to 255: one, and where the camera
            is `"cut"` another that is seen after the cut.
        generator: moves the camera and the dots, changes the light, makes the sensor's noise.

    Returns:
        Frames, uint8 [F, FRAME_SIZE, FRAME_SIZE, 3].
    """
    frames = len(script.states)
    noise = generator.uniform(0.5, 4.0)
    views = _views(script.camera, frames, canvases, generator)
    gains = np.ones(frames, np.float32)
    if script.camera == "light":
        start, stop = generator.uniform(0.65, 1.25, 2)
        gains = np.linspace(start, stop, frames, dtype=np.float32)
    dots = generator.uniform(0, FRAME_SIZE, (script.movers, 2))
    steps = generator.uniform(-4, 4, (script.movers, 2))
    clip = np.empty((frames, FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
    for frame, (view, state) in enumerate(zip(views, script.states, strict=True)):
        for x, y in ((dots + frame * steps) % (FRAME_SIZE - 5)).astype(int):
            view[y : y + 5, x : x + 5] = 110.0
        _put(view, script, state)
        view *= gains[frame]
        view += np.float32(noise) * generator.standard_normal(view.shape, np.float32)
        clip[frame] = np.clip(np.rint(view), 0, 255)
    return clip


def _views(
    camera: str, frames: int, canvases: Sequence[Picture], generator: np.random.Generator
) -> list[Picture]:
    """Return what the camera sees of the background in each frame, a copy each."""
    room = CANVAS - FRAME_SIZE
    place = generator.uniform(room / 4, 3 * room / 4, 2)
    cut = int(generator.integers(1, frames)) if camera == "cut" else frames
    step = np.zeros(2)
    if camera == "pan":
        angle = generator.uniform(0, 2 * np.pi)
        # Slow enough to stay on the canvas until the end.
        speed = generator.uniform(0.3, 1.0) * room / 2 / frames
        step = speed * np.array([np.cos(angle), np.sin(angle)])
    views = []
    for frame in range(frames):
        shake = generator.integers(-2, 3, 2) if camera == "shake" else 0
        x, y = np.clip(np.rint(place + frame * step + shake), 0, room).astype(int)
        canvas = canvases[0] if frame < cut else canvases[1]
        views.append(canvas[y : y + FRAME_SIZE, x : x + FRAME_SIZE].copy())
    return views


def _put(view: Picture, script: Script, state: State) -> None:
    """Draw the squares, the ring and the sign of a frame."""
    for square in state.squares:
        area = view[square.y : square.y + SIZE, square.x : square.x + SIZE]
        area[:] = RGB[square.colour]
        area[_dark(square.pattern)] = _DARK
    if state.ring is not None:
        x, y = script.corner
        ring = view[y : y + SIZE, x : x + SIZE]
        inside = ring[4:-4, 4:-4].copy()
        ring[:] = RGB[state.ring]
        ring[4:-4, 4:-4] = inside
    x, y = script.sign
    view[y : y + SIZE, x : x + SIZE] = _sign(state.digit)


def _dark(pattern: str) -> NDArray[np.bool_]:
    """Return which pixels of a square are dark: its rim, and what its pattern says."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    rim = (np.minimum(rows, columns) == 0) | (np.maximum(rows, columns) == SIZE - 1)
    inner = {
        "plain": np.zeros((SIZE, SIZE), bool),
        "striped": rows % 8 >= 4,
        "barred": columns % 8 >= 4,
        "checked": (rows // 4 + columns // 4) % 2 == 1,
    }[pattern]
    mask: NDArray[np.bool_] = rim | inner
    return mask


def _sign(digit: int) -> Picture:
    """Return the sign: a light plate with a dark digit of 9 × 15 pixels."""
    plate = np.full((SIZE, SIZE, 3), 230.0, np.float32)
    strokes = np.array([[dot == "#" for dot in row] for row in _FONT[digit]])
    strokes = strokes.repeat(3, axis=0).repeat(3, axis=1)
    plate[:15, 4:13][strokes] = _DARK
    return plate
