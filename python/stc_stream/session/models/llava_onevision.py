"""LLaVA-OneVision: frames of one size, pooled to a half in both directions, one axis of positions.

A newline token follows the whole video, not each frame.
"""

from __future__ import annotations

import math

from torch import Tensor

from stc_stream.session.models.square import SquareFrames


class LlavaOnevision(SquareFrames):
    """`LlavaOnevisionForConditionalGeneration` of transformers."""

    family = "LLaVA-OneVision"
    model_type = "llava_onevision"

    def pooled(self, patches: int) -> int:
        """Return the side of the square of tokens."""
        return math.ceil(patches / 2)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the tokens of frames, [F, T, D], without the newline that ends a video."""
        # The argument's name changed after transformers 5.0.
        output = self.model.model.get_video_features(pixels[None], return_dict=True)
        # Since then a newline comes with the features, and not in `forward`.
        tokens: Tensor = output.pooler_output[0, : len(pixels) * self.tokens_per_frame]
        return tokens.view(len(pixels), self.tokens_per_frame, -1)

    def after_video(self) -> Tensor:
        """Return the newline, [1, D]."""
        newline: Tensor = self.model.model.image_newline
        return newline[None]
