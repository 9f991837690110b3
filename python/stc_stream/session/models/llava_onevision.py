"""LLaVA-OneVision: frames of one size, pooled to a half in both directions, one axis of positions.

A newline token follows the whole video, not each frame.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from stc_stream.session.models.square import SquareFrames


def resembles(model: nn.Module) -> bool:
    """Say whether `model` is one."""
    return getattr(getattr(model, "config", None), "model_type", None) == "llava_onevision" and (
        hasattr(model, "lm_head")
    )


class LlavaOnevision(SquareFrames):
    """`LlavaOnevisionForConditionalGeneration` of transformers."""

    family = "LLaVA-OneVision"

    def __init__(self, model: Any) -> None:
        vision = model.config.vision_config
        self.model = model
        self.tower = model.model.vision_tower
        self.llm = model.model.language_model
        self.head = model.lm_head
        self.context = model.config.text_config.max_position_embeddings
        self.image = vision.image_size
        self.side = math.ceil(vision.image_size // vision.patch_size / 2)
        self.video_token = model.config.video_token_id

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
