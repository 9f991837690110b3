"""Small pictures of a stream's frames, kept while it runs: as many as fit, evenly spread."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MOST_PICTURES = 4096
_WIDTH = 192
_TALLEST = 256


@dataclass(frozen=True)
class Thumbnail:
    """A small picture.

    Attributes:
        number: of its frame in the stream, from 0.
        uri: the picture as a data URI.
        width, height: in pixels.
    """

    number: int
    uri: str
    width: int
    height: int


class Album:
    """Takes every frame of a stream, and holds small pictures of all or of every N-th.

    Args:
        most: how many it holds.
    """

    def __init__(self, most: int = MOST_PICTURES) -> None:
        self._most = most
        self._every = 1
        self._count = 0
        self._pictures: dict[int, tuple[bytes, tuple[int, int]]] = {}

    def add(self, image: NDArray[np.uint8]) -> None:
        """Take the next frame, uint8 [H, W, 3]."""
        number = self._count
        self._count += 1
        if number % self._every:
            return
        if len(self._pictures) == self._most:
            self._every *= 2
            self._pictures = {
                own: picture for own, picture in self._pictures.items() if own % self._every == 0
            }
            if number % self._every:
                return
        picture = Image.fromarray(image)
        picture.thumbnail((_WIDTH, _TALLEST))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=80, optimize=True)
        self._pictures[number] = buffer.getvalue(), picture.size

    def nearest(self, number: int) -> Thumbnail:
        """Return the picture of a frame that was taken, or of the nearest one that is held."""
        found = min(self._pictures, key=lambda own: abs(own - number))
        data, (width, height) = self._pictures[found]
        uri = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
        return Thumbnail(found, uri, width, height)
