"""Qwen2.5-VL: as Qwen2-VL, but the axis of time counts the video's seconds."""

from __future__ import annotations

from stc_stream.session.models.qwen2_vl import Qwen2VL


class Qwen25VL(Qwen2VL):
    """`Qwen2_5_VLForConditionalGeneration` of transformers."""

    family = "Qwen2.5-VL"
    model_type = "qwen2_5_vl"

    @property
    def _tokens_per_second(self) -> float | None:
        steps: float = self.model.config.vision_config.tokens_per_second
        return steps
