"""Frames encoded once for all methods whose tower runs densely."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from stc_stream.evaluate.timing import WallClock, timed
from stc_stream.session.models import VideoModel

MOST_BYTES = 1 << 30


class SharedEncoding:
    """A model that remembers the tokens of a video's frames, for sessions that take them again.

    What is remembered stays on the model's device, up to `most_bytes`; frames beyond are computed
    each time.

    Args:
        model: stays as it is.
        most_bytes: of tokens remembered.

    Attributes:
        model: gives what `model` gives.
    """

    def __init__(self, model: VideoModel, most_bytes: int = MOST_BYTES) -> None:
        self.model = copy.copy(model)
        self._encode = model.encode
        vars(self.model)["encode"] = self._remembered
        self._clock = WallClock(model.device)
        self._most = most_bytes
        self._tokens: dict[int, Tensor] = {}
        self._seconds: dict[int, float] = {}
        self._bytes = 0
        self._next = 0
        self._saved = 0.0

    def begin(self) -> None:
        """Forget all frames: another video comes."""
        self._tokens, self._seconds, self._bytes, self._next = {}, {}, 0, 0

    def rewind(self) -> None:
        """Begin the same video again: its first frame comes next."""
        self._next = 0

    def take_saved(self) -> float:
        """Return the seconds that frames had taken which were not computed since the last call."""
        saved, self._saved = self._saved, 0.0
        return saved

    def _remembered(self, pixels: Tensor) -> Tensor:
        numbers = range(self._next, self._next + len(pixels))
        self._next += len(pixels)
        new = [place for place, number in enumerate(numbers) if number not in self._tokens]
        self._saved += sum(self._seconds.get(number, 0.0) for number in numbers)
        found = dict(self._tokens)
        if new:
            tokens, seconds = timed(lambda: self._encode(pixels[new]), self._clock)
            for place, frame in zip(new, tokens, strict=True):
                number = numbers[place]
                found[number] = frame
                if self._bytes + frame.nbytes <= self._most:
                    self._bytes += frame.nbytes
                    self._tokens[number] = frame.clone()
                    self._seconds[number] = seconds / len(new)
        return torch.stack([found[number] for number in numbers])
