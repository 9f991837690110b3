"""What happens in a clip, frame by frame, before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FRAME_SIZE = 96
"""Rows and columns of a frame, in pixels."""
PATCH_SIZE = 8
"""Rows and columns of a patch of the trained tower, in pixels."""
SIZE = 16
"""Rows and columns of a square, of the sign and of the ring, in pixels."""

COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
PATTERNS = ("plain", "striped", "barred", "checked")
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
PLACES = tuple(f"{row} {column}" for row in _ROWS for column in _COLUMNS)
CAMERAS = ("still", "pan", "shake", "light", "cut")

_STEP = 4
_THIRD = FRAME_SIZE // 3


@dataclass(frozen=True)
class Square:
    """A coloured square in a frame.

    Attributes:
        colour: one of `COLOURS`; no two squares of a clip share theirs.
        pattern: one of `PATTERNS`.
        x, y: its left and top edge, in pixels.
    """

    colour: str
    pattern: str
    x: int
    y: int

    @property
    def place(self) -> str:
        """The ninth of the frame that its centre lies in, one of `PLACES`."""
        column, row = (self.x + SIZE // 2) // _THIRD, (self.y + SIZE // 2) // _THIRD
        return PLACES[3 * row + column]


@dataclass(frozen=True)
class State:
    """What a frame shows.

    Attributes:
        squares: those in the frame.
        digit: what the sign says, 0 to 9.
        ring: colour of the ring in the corner; None: there is none now.
    """

    squares: tuple[Square, ...]
    digit: int
    ring: str | None


@dataclass(frozen=True)
class Script:
    """What happens in a clip.

    Attributes:
        states: of each frame.
        sign: left and top edge of the sign, in pixels: on whole patches.
        corner: left and top edge of the ring, in pixels.
        camera: one of `CAMERAS`.
        movers: how many small grey dots cross the scene, about which nothing is asked.
    """

    states: tuple[State, ...]
    sign: tuple[int, int]
    corner: tuple[int, int]
    camera: str
    movers: int


def write_script(generator: np.random.Generator, frames: int) -> Script:
    """Make up what happens in a clip of `frames` frames, at least 4.

    Raises:
        ValueError: too few frames.
    """
    if frames < 4:
        raise ValueError(f"frames must be at least 4, but is {frames}")
    corners = [(x, y) for x in (0, FRAME_SIZE - SIZE) for y in (0, FRAME_SIZE - SIZE)]
    corner = corners[generator.integers(4)]
    inner = [
        (x, y)
        for x in range(0, FRAME_SIZE - SIZE + 1, PATCH_SIZE)
        for y in range(0, FRAME_SIZE - SIZE + 1, PATCH_SIZE)
        if not _touch((x, y), corner)
    ]
    sign = inner[generator.integers(len(inner))]
    # In a quiet clip everything happens early or late, and nothing for a long time between.
    quiet = generator.random() < 0.2
    eventful = _eventful(generator, frames, quiet)
    actors = _cast(generator, frames, eventful)
    digits = _digits(generator, frames, eventful)
    rings = _rings(generator, frames)
    states: list[State] = []
    places: dict[str, tuple[int, int]] = {}
    for frame in range(frames):
        squares = []
        for actor in actors:
            if not actor.shows[frame]:
                places.pop(actor.colour, None)
                continue
            taken = [sign, corner, *(at for colour, at in places.items() if colour != actor.colour)]
            at = places.get(actor.colour)
            if at is None:
                at = _free(generator, taken)
            elif eventful[frame] and generator.random() < actor.restless:
                at = _moved(generator, at, taken)
            places[actor.colour] = at
            squares.append(Square(actor.colour, actor.pattern, *at))
        states.append(State(tuple(squares), digits[frame], rings[frame]))
    camera = CAMERAS[generator.choice(len(CAMERAS), p=(0.36, 0.16, 0.16, 0.16, 0.16))]
    movers = int(generator.integers(3, 8)) if generator.random() < 0.2 else 0
    return Script(tuple(states), sign, corner, camera, movers)


@dataclass(frozen=True)
class _Actor:
    colour: str
    pattern: str
    shows: tuple[bool, ...]
    restless: float


def _cast(generator: np.random.Generator, frames: int, eventful: list[bool]) -> list[_Actor]:
    count = int(generator.integers(1, 5))
    colours = generator.permutation(len(COLOURS))[:count]
    # Told apart by when they came: no two come in the same frame.
    times = [frame for frame in range(frames - 2) if eventful[frame]]
    arrivals = generator.permutation(times)[:count]
    actors = []
    for colour, arrival in zip(colours, arrivals, strict=False):
        shows = [False] * frames
        start = int(arrival)
        leaves = start + 2 + int(generator.integers(0, frames // 3))
        returns = leaves + 1 + int(generator.integers(1, frames // 4 + 1))
        gone_again = returns + 2 + int(generator.integers(0, frames // 2))
        comes_back = generator.random() < 0.6
        for frame in range(frames):
            first = start <= frame < leaves
            second = comes_back and returns <= frame < gone_again
            shows[frame] = first or second
        restless = 0.0 if generator.random() < 0.3 else 0.45
        pattern = PATTERNS[generator.integers(len(PATTERNS))]
        actors.append(_Actor(COLOURS[colour], pattern, tuple(shows), restless))
    return actors


def _eventful(generator: np.random.Generator, frames: int, quiet: bool) -> list[bool]:
    if not quiet:
        return [True] * frames
    third = frames // 3
    first = int(generator.integers(1, third + 1))
    return [not first <= frame < first + 2 * third - 1 for frame in range(frames)]


def _digits(generator: np.random.Generator, frames: int, eventful: list[bool]) -> list[int]:
    digits = [int(generator.integers(10))]
    for frame in range(1, frames):
        changes = eventful[frame] and generator.random() < 0.2
        other = (digits[-1] + int(generator.integers(1, 10))) % 10
        digits.append(other if changes else digits[-1])
    return digits


def _rings(generator: np.random.Generator, frames: int) -> list[str | None]:
    rings: list[str | None] = [None] * frames
    start = int(generator.integers(0, frames // 2))
    while start < frames:
        stays = int(generator.integers(2, frames // 3 + 2))
        colour = COLOURS[generator.integers(len(COLOURS))]
        rings[start : start + stays] = [colour] * len(rings[start : start + stays])
        start += stays + int(generator.integers(2, frames // 2 + 2))
    return rings


def _free(generator: np.random.Generator, taken: list[tuple[int, int]]) -> tuple[int, int]:
    free = [at for at in _PLACES if not any(_touch(at, other) for other in taken)]
    return free[generator.integers(len(free))]


def _moved(
    generator: np.random.Generator, at: tuple[int, int], taken: list[tuple[int, int]]
) -> tuple[int, int]:
    near = [
        to
        for to in _PLACES
        if 8 <= max(abs(to[0] - at[0]), abs(to[1] - at[1])) <= 32
        and not any(_touch(to, other) for other in taken)
    ]
    return near[generator.integers(len(near))] if near else at


def _touch(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return abs(one[0] - other[0]) < SIZE and abs(one[1] - other[1]) < SIZE


def _clear(edge: int) -> bool:
    """Tell whether a square's centre is clear of the lines between ninths."""
    return all(abs(edge + SIZE // 2 - line) >= PATCH_SIZE for line in (_THIRD, 2 * _THIRD))


_EDGES = [edge for edge in range(0, FRAME_SIZE - SIZE + 1, _STEP) if _clear(edge)]
_PLACES = [(x, y) for x in _EDGES for y in _EDGES]
