"""How a video LLM turns frames into its LLM's inputs: one file a family."""

from __future__ import annotations

from torch import nn

from stc_stream.session.models import (
    llava_next_video,
    llava_onevision,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_vl,
)
from stc_stream.session.models.llava_next_video import LlavaNextVideo
from stc_stream.session.models.llava_onevision import LlavaOnevision
from stc_stream.session.models.model import VideoModel
from stc_stream.session.models.qwen2_5_vl import Qwen25VL
from stc_stream.session.models.qwen2_vl import Qwen2VL
from stc_stream.session.models.qwen3_vl import Qwen3VL

__all__ = ["FAMILIES", "VideoModel", "read_model"]

FAMILIES = (
    (llava_onevision.resembles, LlavaOnevision),
    (llava_next_video.resembles, LlavaNextVideo),
    (qwen2_vl.resembles, Qwen2VL),
    (qwen2_5_vl.resembles, Qwen25VL),
    (qwen3_vl.resembles, Qwen3VL),
)
"""For each family, what recognises its models, and what reads them."""


def read_model(model: nn.Module | VideoModel) -> VideoModel:
    """Return a video LLM as a session uses it; one that is read already is returned as it is.

    Raises:
        TypeError: not a model of a family that is known.
    """
    if isinstance(model, VideoModel):
        return model
    for resembles, family in FAMILIES:
        if resembles(model):
            return family(model)
    known = ", ".join(family.family for _, family in FAMILIES)
    raise TypeError(
        f"model must be a video LLM of transformers, with its LLM and its head, of these families: "
        f"{known}; but is a {type(model).__name__}"
    )
