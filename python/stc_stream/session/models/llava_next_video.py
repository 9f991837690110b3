"""LLaVA-NeXT-Video: a CLIP tower, pooled before the projector, one axis of positions.

The frames of a video follow each other without a newline token.
"""

from __future__ import annotations

from torch import Tensor

from stc_stream.session.models.square import SquareFrames


class LlavaNextVideo(SquareFrames):
    """`LlavaNextVideoForConditionalGeneration` of transformers, its LLM a Llama or a Mistral."""

    family = "LLaVA-NeXT-Video"
    model_type = "llava_next_video"

    def pooled(self, patches: int) -> int:
        """Return the side of the square of tokens."""
        stride: int = self.model.config.spatial_pool_stride
        return patches // stride

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
