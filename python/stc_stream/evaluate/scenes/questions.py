"""What is asked about a clip: each question sees the frames until its moment and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from stc_stream.evaluate.scenes.script import COLOURS, PATTERNS, PLACES, Square, State

GONE_SHARE = 0.65
"""Share of the questions about one square that are about one that has left, where there is one."""

_WHERE = "Where was the {} square last?"
_PATTERN = "What pattern did the {} square have?"
_BACK = "Has the {} square left and come back?"
_FIRST = "Which came first, the {} or the {} square?"
_SIGN = "What does the sign say now?"
_BEFORE = "What did the sign say before?"
_COUNT = "How many squares have come so far?"
_RING = "What colour was the ring in the corner last?"

_DIGITS = tuple("0123456789")

ANSWERS: dict[str, tuple[str, ...]] = {
    "where": PLACES,
    "pattern": PATTERNS,
    "back": ("yes", "no"),
    "first": COLOURS,
    "sign": _DIGITS,
    "before": _DIGITS,
    "count": ("1", "2", "3", "4"),
    "ring": COLOURS,
}
"""The answers that each task knows."""
TASKS = tuple(ANSWERS)


@dataclass(frozen=True)
class Question:
    """A question with its answer.

    Attributes:
        task: one of `TASKS`.
        frame: it is asked after this frame, counted from 0.
        text: as it is put to the model.
        answer: the right one, one of `ANSWERS[task]`.
        in_last_frame: whether the frame that it is asked after is enough to know the answer.
    """

    task: str
    frame: int
    text: str
    answer: str
    in_last_frame: bool


def ask(
    task: str, states: Sequence[State], frame: int, generator: np.random.Generator
) -> Question | None:
    """Ask a question of a task after a frame; None: there is nothing to ask about yet.

    Args:
        task: one of `TASKS`.
        states: of a clip's frames.
        frame: the last one that is seen.
        generator: chooses what the question is about.

    Raises:
        ValueError: an unknown task, or a frame that the clip doesn't have.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, but is {task!r}")
    if not 0 <= frame < len(states):
        raise ValueError(f"frame must be from 0 to {len(states) - 1}, but is {frame}")
    found = _ASKED[task](states[: frame + 1], generator)
    return None if found is None else Question(task, frame, *found)


def question_texts() -> tuple[str, ...]:
    """Return every question that there is."""
    about_one = [text.format(one) for text in (_WHERE, _PATTERN, _BACK) for one in COLOURS]
    about_two = [_FIRST.format(*pair) for pair in permutations(COLOURS, 2)]
    return (*about_one, *about_two, _SIGN, _BEFORE, _COUNT, _RING)


_Found = tuple[str, str, bool] | None
_Seen = Sequence[State]


def _where(seen: _Seen, generator: np.random.Generator) -> _Found:
    return _about_one(seen, generator, _WHERE, lambda square: square.place)


def _pattern(seen: _Seen, generator: np.random.Generator) -> _Found:
    return _about_one(seen, generator, _PATTERN, lambda square: square.pattern)


def _about_one(
    seen: _Seen, generator: np.random.Generator, text: str, answer: Callable[[Square], str]
) -> _Found:
    latest = {square.colour: square for state in seen for square in state.squares}
    here = {square.colour for square in seen[-1].squares}
    gone = sorted(latest.keys() - here)
    if not latest:
        return None
    asked = gone if gone and (not here or generator.random() < GONE_SHARE) else sorted(here)
    colour = asked[generator.integers(len(asked))]
    return text.format(colour), answer(latest[colour]), colour in here


def _back(seen: _Seen, generator: np.random.Generator) -> _Found:
    came: dict[str, int] = {}
    before: set[str] = set()
    for state in seen:
        now = {square.colour for square in state.squares}
        for colour in now - before:
            came[colour] = came.get(colour, 0) + 1
        before = now
    if not came:
        return None
    returned = sorted(colour for colour, times in came.items() if times > 1)
    others = sorted(colour for colour, times in came.items() if times == 1)
    if returned and (not others or generator.random() < 0.7):
        asked = returned
    elif generator.random() < 0.35:
        asked = others
    else:
        # Most clips have no square that came back: "no" would be right too often.
        return None
    colour = asked[generator.integers(len(asked))]
    return _BACK.format(colour), "yes" if came[colour] > 1 else "no", False


def _first(seen: _Seen, generator: np.random.Generator) -> _Found:
    arrivals: dict[str, int] = {}
    for frame, state in enumerate(seen):
        for square in state.squares:
            arrivals.setdefault(square.colour, frame)
    # Of two that came in one frame none was first.
    pairs = [
        (one, other)
        for one, other in permutations(sorted(arrivals), 2)
        if arrivals[one] != arrivals[other]
    ]
    if not pairs:
        return None
    pair = pairs[generator.integers(len(pairs))]
    return _FIRST.format(*pair), min(pair, key=lambda colour: arrivals[colour]), False


def _sign(seen: _Seen, generator: np.random.Generator) -> _Found:
    return _SIGN, str(seen[-1].digit), True


def _before(seen: _Seen, generator: np.random.Generator) -> _Found:
    now = seen[-1].digit
    for state in reversed(seen):
        if state.digit != now:
            return _BEFORE, str(state.digit), False
    return None


def _count(seen: _Seen, generator: np.random.Generator) -> _Found:
    colours = {square.colour for state in seen for square in state.squares}
    return (_COUNT, str(len(colours)), False) if colours else None


def _ring(seen: _Seen, generator: np.random.Generator) -> _Found:
    for state in reversed(seen):
        if state.ring is not None:
            return _RING, state.ring, seen[-1].ring is not None
    return None


_ASKED: dict[str, Callable[[_Seen, np.random.Generator], _Found]] = {
    "where": _where,
    "pattern": _pattern,
    "back": _back,
    "first": _first,
    "sign": _sign,
    "before": _before,
    "count": _count,
    "ring": _ring,
}
