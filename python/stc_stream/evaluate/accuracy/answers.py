"""What a method answered about a video, and what that took: all that is kept of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Response:
    """The answer to one question.

    Attributes:
        item: the question's name.
        text: the answer; None: the question, or its video, did not fit into the memory.
        likelihoods: log-probability of each choice, where the model chose among some.
        seconds: from the question to the answer's end.
        tokens_held: what the language model remembered when it was asked.
    """

    item: str
    text: str | None
    likelihoods: tuple[float, ...] = ()
    seconds: float = 0.0
    tokens_held: int = 0


@dataclass(frozen=True)
class VideoAnswers:
    """All answers of a method about a video.

    Attributes:
        method: its name.
        video: of the task.
        responses: in order of time.
        frames: frames fed; each counts again where a method has to see a clip anew.
        tokens, kept: tokens that the projector made of them, and those that went on.
        tower_share: of the tower's multiplications, dense being 1; mean over the frames.
        seconds: of each stage of a frame's way, summed over the frames.
    """

    method: str
    video: str
    responses: tuple[Response, ...]
    frames: int
    tokens: int
    kept: int
    tower_share: float
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class FailedVideo:
    """A video that no question was asked about.

    Attributes:
        video: of the task.
        reason: why, in a line: it is missing, or damaged.
    """

    video: str
    reason: str
