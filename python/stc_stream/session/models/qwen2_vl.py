"""Qwen2-VL: a temporal patch is a step on the axis of time."""

from __future__ import annotations

from functools import cached_property

from stc_stream.session.models.qwen_vl import Clock, ContiguousInTime, KeptInTime, QwenVL
from stc_stream.session.numbering import Numbering, Positions


class Qwen2VL(QwenVL):
    """`Qwen2VLForConditionalGeneration` of transformers."""

    family = "Qwen2-VL"
    model_type = "qwen2_vl"

    def numbering(self, positions: Positions) -> Numbering:
        """Return what numbers the tokens of frames."""
        return (KeptInTime if positions == "kept" else ContiguousInTime)(self._clock)

    @cached_property
    def _clock(self) -> Clock:
        start = self.model.config.vision_start_token_id
        return Clock.of(self, start, self._tokens_per_second)

    @property
    def _tokens_per_second(self) -> float | None:
        return None
