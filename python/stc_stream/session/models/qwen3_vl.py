"""Qwen3-VL: the time of each temporal patch stands before it as text, and its positions start anew.

Its tower gives features of several layers, of which all but the last are added behind the first
layers of the LLM (DeepStack, arXiv 2406.04334).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.processing_utils import ProcessorMixin

from stc_stream.session.models.qwen_vl import QwenVL
from stc_stream.session.numbering import Numbering, Place, Positions, TemporalPatch
from stc_stream.session.pixels import SharedPixelSettings
from stc_stream.session.processor import Prompt, SessionProcessor

_START, _END = "<|vision_start|>", "<|vision_end|>"


class Qwen3VL(QwenVL):
    """`Qwen3VLForConditionalGeneration` of transformers."""

    family = "Qwen3-VL"
    model_type = "qwen3_vl"
    pixels = SharedPixelSettings

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.levels = len(model.config.vision_config.deepstack_visual_indexes)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the features of temporal patches, [P, T, (1 + L) · D]."""
        patches, grid = self._patched(pixels)
        output = self.model.model.get_video_features(patches, grid, return_dict=True)
        # A tensor for each video, but in older versions one for all.
        levels = [
            level if isinstance(level, Tensor) else torch.cat(tuple(level))
            for level in (output.pooler_output, *output.deepstack_features)
        ]
        features = torch.cat(levels, dim=1)
        return features.view(len(pixels) // self.frames_per_patch, -1, features.shape[1])

    def around(self, times: tuple[float, ...]) -> tuple[str, str]:
        """Return the middle of the times, and what closes the temporal patch."""
        return f"<{(times[0] + times[-1]) / 2:.1f} seconds>{_START}", _END

    def prompt(self, processor: SessionProcessor, question: str, video: bool) -> Prompt:
        """Return the tokens of a question, as the installed processor writes them."""
        prompt = processor.prompt(question, video)
        start, end = processor.tokenizer.convert_tokens_to_ids([_START, _END])
        wrapped = prompt.before[-1:] == [start] and prompt.after[:1] == [end]
        # Before processors had this method they took what is around a video for a part of it.
        if video and wrapped and not hasattr(ProcessorMixin, "replace_video_token"):
            return Prompt(prompt.before[:-1], prompt.after[1:])
        return prompt

    def numbering(self, positions: Positions) -> Numbering:
        """Return what numbers the tokens of frames, the same for both settings."""
        return InPlace()

    def layer_inputs(self, inputs: Tensor) -> dict[str, Tensor | list[Tensor]]:
        """Return embeddings, and what is added behind each of the first layers."""
        embeddings, *levels = inputs.split(self.width, dim=2)
        everywhere = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
        return {
            "inputs_embeds": embeddings,
            "visual_pos_masks": everywhere,
            "deepstack_visual_embeds": [level.flatten(0, 1) for level in levels],
        }


class InPlace(Numbering):
    """A token has its row and column in its temporal patch, which is at one time."""

    def positions(self, place: Place, patch: TemporalPatch, index: Tensor) -> Tensor:
        """Return time, row and column, [3, k]."""
        rows, columns = index // patch.columns, index % patch.columns
        return place.text + torch.stack([torch.zeros_like(index), rows, columns])

    def after(self, place: Place, patch: TemporalPatch, kept: int) -> Place:
        """Return the place behind its rows and columns."""
        text = place.text + max(patch.rows, patch.columns)
        return replace(place, text=text, reach=max(place.reach, text))
