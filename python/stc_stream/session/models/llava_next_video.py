"""LLaVA-NeXT-Video: a CLIP tower, pooled before the projector, one axis of positions.

The frames of a video follow each other without a newline token.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stc_stream.session.models.square import SquareFrames


def resembles(model: nn.Module) -> bool:
    """Say whether `model` is one."""
    return getattr(getattr(model, "config", None), "model_type", None) == "llava_next_video" and (
        hasattr(model, "lm_head")
    )


class LlavaNextVideo(SquareFrames):
    """`LlavaNextVideoForConditionalGeneration` of transformers, its LLM a Llama or a Mistral."""

    family = "LLaVA-NeXT-Video"

    def __init__(self, model: Any) -> None:
        vision = model.config.vision_config
        self.model = model
        self.tower = model.model.vision_tower
        self.llm = model.model.language_model
        self.head = model.lm_head
        self.context = model.config.text_config.max_position_embeddings
        self.image = vision.image_size
        self.side = vision.image_size // vision.patch_size // model.config.spatial_pool_stride
        self.video_token = model.config.video_token_id

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the tokens of frames, [F, T, D]."""
        # Which of the tower's layers and tokens are taken, the model's config says.
        output = self.model.model.get_video_features(pixels[None], return_dict=True)
        # Older versions do not join them over frames.
        tokens: Tensor = output.pooler_output[0]
        return tokens.view(len(pixels), self.tokens_per_frame, -1)

    def after_video(self) -> Tensor:
        """Return nothing, [0, D]."""
        return self.embed([])
