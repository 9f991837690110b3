"""How a video LLM turns frames into its LLM's inputs: one file a family."""

from __future__ import annotations

from torch import nn

from stc_stream.session.models.llava_next_video import LlavaNextVideo
from stc_stream.session.models.llava_onevision import LlavaOnevision
from stc_stream.session.models.model import VideoModel
from stc_stream.session.models.qwen2_5_vl import Qwen25VL
from stc_stream.session.models.qwen2_vl import Qwen2VL
from stc_stream.session.models.qwen3_vl import Qwen3VL

__all__ = ["FAMILIES", "VideoModel", "read_model"]

FAMILIES: tuple[type[VideoModel], ...] = (
    LlavaOnevision,
    LlavaNextVideo,
    Qwen2VL,
    Qwen25VL,
    Qwen3VL,
)
"""Those that are known."""


def read_model(model: nn.Module | VideoModel) -> VideoModel:
    """Return a video LLM as a session uses it; one that is read already is returned as it is.

    Raises:
        TypeError: not a model of a family that is known.
    """
    if isinstance(model, VideoModel):
        return model
    for family in FAMILIES:
        if family.resembles(model):
            return family(model)
    known = ", ".join(family.family for family in FAMILIES)
    raise TypeError(
        f"model must be a video LLM of transformers, with its LLM and its head, of these families: "
        f"{known}; but is a {type(model).__name__}"
    )
