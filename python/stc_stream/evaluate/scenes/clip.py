"""Clips from their numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stc_stream.evaluate.scenes.drawing import draw
from stc_stream.evaluate.scenes.pictures import Split, background
from stc_stream.evaluate.scenes.questions import TASKS, Question, ask
from stc_stream.evaluate.scenes.script import Script, write_script

FRAMES = 12
"""Frames of a clip of the test set."""

_SPLITS: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip and what is asked about it.

    Attributes:
        frames: uint8 [F, FRAME_SIZE, FRAME_SIZE, 3].
        script: what happens in it.
        questions: in order of the frame that each is asked after.
    """

    frames: NDArray[np.uint8]
    script: Script
    questions: tuple[Question, ...]


def make_clip(split: Split, number: int, frames: int = FRAMES) -> Clip:
    """Make a clip, always the same for the same arguments.

    Args:
        split: whose photographs and seeds are used; no two splits share any.
        number: which clip of the split, from 0.
        frames: its length, at least 4.

    Returns:
        The clip, with one question of each task that something can be asked about, each after a
        frame of the clip's last two thirds.

    Raises:
        ModuleNotFoundError: scikit-image or Pillow isn't installed (`stc-kernels[scenes]`).
        ValueError: an unknown split, a negative number, too few frames.
    """
    script, generator = _begin(split, number, frames)
    canvases = [background(split, generator)]
    if script.camera == "cut":
        canvases.append(background(split, generator))
    pictures = draw(script, canvases, generator)
    questions = []
    for task in TASKS:
        moment = int(generator.integers(frames // 3, frames))
        question = ask(task, script.states, moment, generator)
        if question is not None:
            questions.append(question)
    questions.sort(key=lambda question: question.frame)
    return Clip(pictures, script, tuple(questions))


def make_script(split: Split, number: int, frames: int = FRAMES) -> Script:
    """Return the script of `make_clip(split, number, frames)` without drawing anything.

    Raises:
        ValueError: an unknown split, a negative number, too few frames.
    """
    return _begin(split, number, frames)[0]


def _begin(split: Split, number: int, frames: int) -> tuple[Script, np.random.Generator]:
    """Return a clip's script, and the generator that the rest of the clip is made with."""
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(_SPLITS)}, but is {split!r}")
    if number < 0:
        raise ValueError(f"number must be at least 0, but is {number}")
    generator = np.random.default_rng([_SPLITS[split], number])
    return write_script(generator, frames), generator
