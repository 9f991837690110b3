"""What a session was made with, and how that has frames go into the LLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from stc_stream.cacher import CacherConfig
from stc_stream.cacher.part import TowerPart
from stc_stream.session.memory import KeptFrame, Memory, SessionCache, StreamLayout, StreamMemory
from stc_stream.session.models import VideoModel
from stc_stream.session.numbering import Place, Positions, TemporalPatch
from stc_stream.session.processor import SessionProcessor

PREFILL_AT_ONCE = 4096
"""Tokens that go through the LLM together, so that its attention mask stays small."""


@dataclass(frozen=True, eq=False)
class Settings:
    """What a session was made with, which never changes.

    Attributes:
        model, processor: as read.
        cacher, memory, positions: as given.
        before: the tokens before a video in a prompt.
    """

    model: VideoModel
    processor: SessionProcessor
    cacher: CacherConfig | TowerPart | None
    memory: Memory
    positions: Positions
    before: list[int]

    @cached_property
    def layout(self) -> StreamLayout:
        """What is known of a stream before its first frame."""
        numbering = self.model.numbering(self.positions)
        tokens = self.model.tokens_per_frame
        patch = self.model.frames_per_patch
        return StreamLayout(self.positions, len(self.before), tokens, numbering, patch)

    def open(self) -> StreamMemory:
        """Return an empty memory."""
        return self.memory.open(self.model.model.config.get_text_config(), self.layout)

    def patches(self, size: tuple[int, int], times: Sequence[float]) -> list[TemporalPatch]:
        """Return the whole temporal patches of frames at these times."""
        model, tokenizer = self.model, self.processor.tokenizer
        rows, columns = model.grid(size)
        patches = []
        for end in range(self.model.frames_per_patch, len(times) + 1, self.model.frames_per_patch):
            own = tuple(times[end - self.model.frames_per_patch : end])
            around = [tuple(_tokens(tokenizer, text)) for text in model.around(own)]
            patches.append(TemporalPatch(rows, columns, own, *around))
        return patches

    def prefill(self, frames: Sequence[KeptFrame], place: Place, cache: SessionCache) -> Place:
        """Write kept tokens into a cache; return the place behind them."""
        left = list(frames)
        # The text before a video is a block as well.
        before = [self.before] if place == Place() and self.before else []
        while before or left:
            counts = [*map(len, before), *(frame.count for frame in left)]
            together, place = cache.make_room(counts, place)
            own = together - len(before)
            inputs, positions, place = self.laid_out(before[0] if before else [], left[:own], place)
            for part, where in zip(
                inputs.split(PREFILL_AT_ONCE), positions.split(PREFILL_AT_ONCE, dim=1), strict=True
            ):
                # A rule of one's own may keep nothing of a frame.
                if len(part):
                    self.model.run(part, where, cache)
            before = []
            del left[:own]
        return place

    def laid_out(
        self, before: list[int], frames: Sequence[KeptFrame], place: Place
    ) -> tuple[Tensor, Tensor, Place]:
        """Return the LLM's input for text and what is kept of frames.

        Returns:
            Inputs [n, D], positions [axes, n], and the place behind them.
        """
        model, numbering = self.model, self.layout.numbering
        inputs = [model.embed(before)]
        positions = [model.text_positions(place.text, len(before))]
        place = place.after_text(len(before))

        def text(tokens: Sequence[int]) -> None:
            nonlocal place
            if tokens:
                inputs.append(model.embed([*tokens]))
                positions.append(model.text_positions(place.text, len(tokens)))
                place = place.after_text(len(tokens))

        for frame in frames:
            text(frame.patch.before)
            inputs.append(frame.tokens.to(inputs[0]))
            index = frame.index.to(positions[0].device)
            positions.append(numbering.positions(place, frame.patch, index))
            place = numbering.after(place, *frame.block)
            text(frame.patch.behind)
        return torch.cat(inputs), torch.cat(positions, dim=1), place


def _tokens(tokenizer: Any, text: str) -> list[int]:
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    return tokens
