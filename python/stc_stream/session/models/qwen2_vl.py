"""Qwen2-VL: a temporal patch is a step on the axis of time."""

from __future__ import annotations

from functools import cached_property

from torch import nn

from stc_stream.session.models.qwen_vl import Clock, ContiguousInTime, KeptInTime, QwenVL
from stc_stream.session.numbering import Numbering, Positions


def resembles(model: nn.Module) -> bool:
    """Say whether `model` is one."""
    return getattr(getattr(model, "config", None), "model_type", None) == "qwen2_vl" and (
        hasattr(model, "lm_head")
    )


class Qwen2VL(QwenVL):
    """`Qwen2VLForConditionalGeneration` of transformers."""

    family = "Qwen2-VL"

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
