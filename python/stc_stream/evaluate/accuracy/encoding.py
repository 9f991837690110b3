"""Frames encoded once for all methods whose tower runs densely."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from stc_stream.evaluate.timing import WallClock, timed
from stc_stream.session.models import VideoModel

MOST_BYTES = 1 << 30


class SharedEncoding:
    """A model that remembers what it made of pixels, for sessions that see the same video.

    What is remembered stays on the model's device, up to `most_bytes`; what comes beyond is
    computed each time.

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
        self._known: dict[bytes, tuple[Tensor, float]] = {}
        self._bytes = 0
        self._owed = 0.0

    def begin(self) -> None:
        """Forget everything: another video comes."""
        self._known, self._bytes, self._owed = {}, 0, 0.0

    def take_owed(self) -> float:
        """Return by how many seconds the calls since the last time were too short.

        What they would have taken without a memory, less what remembering took.
        """
        owed, self._owed = self._owed, 0.0
        return owed

    def _remembered(self, pixels: Tensor) -> Tensor:
        keys, looking = timed(lambda: [*self._keys(pixels)], self._clock)
        new = [place for place, key in enumerate(keys) if key not in self._known]
        saved = sum(self._known[key][1] for key in keys if key in self._known)
        found = {key: self._known[key][0] for key in keys if key in self._known}
        if new:
            rows = pixels.unflatten(0, (len(keys), -1))[new].flatten(0, 1)
            tokens, seconds = timed(lambda: self._encode(rows), self._clock)
            for place, patch in zip(new, tokens, strict=True):
                found[keys[place]] = patch
                if self._bytes + patch.nbytes <= self._most:
                    self._bytes += patch.nbytes
                    self._known[keys[place]] = patch.clone(), seconds / len(new)
        self._owed += saved - looking
        return torch.stack([found[key] for key in keys])

    def _keys(self, pixels: Tensor) -> Iterator[bytes]:
        """Give what tells the temporal patches of a call from all others of a video."""
        for patch in pixels.split(self.model.frames_per_patch):
            data = patch.contiguous().view(torch.uint8).cpu().numpy()
            yield str(tuple(patch.shape)).encode() + hashlib.blake2b(data).digest()
