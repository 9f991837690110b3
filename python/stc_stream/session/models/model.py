"""What a session asks of a family of video LLMs: the one interface of all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from stc_stream.session.memory import SessionCache


class VideoModel(ABC):
    """A video LLM as a session uses it; a family says what differs.

    Attributes:
        model: the model of transformers.
        tower: its vision tower.
        llm: its LLM without the head.
        head: from the LLM's output to logits.
        context: tokens, and positions, that the LLM takes.
        image_size: height and width of a frame as the tower takes it, in pixels.
        tokens_per_frame: tokens of a frame after projector and pooling (T).
        video_token: the token that stands for those of a video in a prompt.
    """

    family: str

    model: Any
    tower: nn.Module
    llm: Any
    head: nn.Module
    context: int
    image_size: tuple[int, int]
    tokens_per_frame: int
    video_token: int

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """Return the tokens of frames, after tower, projector and pooling, [F, T, D].

        Args:
            pixels: as the processor makes them, [F, 3, H, W].
        """

    @abstractmethod
    def after_video(self) -> Tensor:
        """Return what follows a video's last frame in the stock model's input, [n, D]."""

    @property
    def device(self) -> torch.device:
        """Where the LLM runs."""
        return self.embedding.weight.device

    @property
    def pixels_like(self) -> Tensor:
        """A weight of the tower: pixels are of its dtype, and on its device."""
        return next(weight for weight in self.tower.parameters() if weight.is_floating_point())

    @property
    def embedding(self) -> nn.Embedding:
        """The LLM's table of tokens."""
        table: nn.Embedding = self.model.get_input_embeddings()
        return table

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        if ends is None:
            ends = self.model.config.get_text_config().eos_token_id
        return frozenset([ends] if isinstance(ends, int) else ends or ())

    def embed(self, ids: list[int]) -> Tensor:
        """Return the LLM's input for tokens of text, [n, D]."""
        table = self.embedding
        tokens: Tensor = table(torch.tensor(ids, dtype=torch.int64, device=table.weight.device))
        return tokens

    def text_positions(self, first: int, count: int) -> Tensor:
        """Return the positions of text, int64 [1, count]."""
        return torch.arange(first, first + count, device=self.device)[None]

    def frame_positions(self, first: int, index: Tensor) -> Tensor:
        """Return the positions that kept tokens of a frame have, int64 [1, k].

        Args:
            first: the position at which the frame starts.
            index: the kept tokens' places in the frame, int64 [k].
        """
        return (first + index.to(self.device))[None]

    def run(self, inputs: Tensor, positions: Tensor, cache: SessionCache) -> Tensor:
        """Run the LLM on what comes next and write it into the cache; return its output, [n, D].

        Args:
            inputs: [n, D].
            positions: int64, [axes, n].
        """
        # Without a cache, gaps between positions would be taken for another sequence.
        with cache.running(self.llm, positions):
            output = self.llm(
                inputs_embeds=inputs[None],
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of outputs of the LLM, float32 [n, vocabulary]."""
        logits: Tensor = self.head(hidden)
        return logits.float()
