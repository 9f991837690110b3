"""Models that take frames of one size, and make a square of tokens of each."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from stc_stream.session.models.model import VideoModel
from stc_stream.session.pixels import Pixels, PixelSettings


class SquareFrames(VideoModel):
    """A family whose frames are all alike.

    Attributes:
        image: side of a frame as the tower takes it, in pixels.
        side: of the square of its tokens.
    """

    image: int
    side: int

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        vision = model.config.vision_config
        self.tower = model.model.vision_tower
        self.image = vision.image_size
        self.side = self.pooled(vision.image_size // vision.patch_size)

    @abstractmethod
    def pooled(self, patches: int) -> int:
        """Return the side of the square of tokens that pooling makes of one of patches."""

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of a frame after projector and pooling (T)."""
        return self.side * self.side

    def misfit(self, pixels: Pixels) -> str | None:
        """Refuse frames of another size."""
        image = self.image
        size = (pixels.height, pixels.width) if isinstance(pixels, PixelSettings) else None
        if size == (image, image):
            return None
        made = "any size" if size is None else f"{size[0]} × {size[1]} pixels"
        return f"it makes frames of {made}, but the model takes {image} × {image}"

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the sides of the square."""
        return self.side, self.side
