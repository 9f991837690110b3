"""What a session asks of a family of video LLMs: the one interface of all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stc_stream.session.memory import SessionCache
from stc_stream.session.numbering import Contiguous, Kept, Numbering, Positions
from stc_stream.session.pixels import Pixels
from stc_stream.session.processor import Prompt, SessionProcessor


class VideoModel(ABC):
    """A video LLM as a session uses it; a family says what differs.

    Attributes:
        family: what to call it.
        model_type: what transformers calls it, in a config.
        model: the model of transformers.
        tower: its vision tower.
        llm: its LLM without the head.
        head: from the LLM's output to logits.
        context: tokens, and positions, that the LLM takes.
        video_token: the token that stands for those of a video in a prompt.
        frames_per_patch: frames that the tower takes as one, a temporal patch.
        axes: of its positions.
        levels: features of a token that go into the LLM behind its first layers, beside what goes
            into the first (L).
        video_arguments: what `generate` is given of videos.
    """

    family: str
    model_type: str
    frames_per_patch: int = 1
    axes: int = 1
    levels: int = 0
    video_arguments: tuple[str, ...] = ("pixel_values_videos",)

    model: Any
    tower: nn.Module
    llm: Any
    head: nn.Module
    context: int
    video_token: int

    def __init__(self, model: Any) -> None:
        self.model = model
        self.llm = model.model.language_model
        self.head = model.lm_head
        self.context = model.config.get_text_config().max_position_embeddings
        self.video_token = model.config.video_token_id

    @classmethod
    def resembles(cls, model: nn.Module) -> bool:
        """Say whether `model` is one of this family, with its head."""
        model_type = getattr(getattr(model, "config", None), "model_type", None)
        return model_type == cls.model_type and hasattr(model, "lm_head")

    @abstractmethod
    def misfit(self, pixels: Pixels) -> str | None:
        """Say why frames that are made so are not for this model; None: they are."""

    @abstractmethod
    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of the tokens of a temporal patch.

        Args:
            size: height and width of its frames as the tower takes them, in pixels.
        """

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """Return the tokens of temporal patches, after tower, projector and pooling, [P, T, D].

        With `levels`, [P, T, (1 + L) · D]: behind a token's own features those of each level.

        Args:
            pixels: as the processor makes them, [P · frames_per_patch, 3, H, W].
        """

    @abstractmethod
    def after_video(self) -> Tensor:
        """Return what follows a video's last frame in the stock model's input, [n, D]."""

    def around(self, times: tuple[float, ...]) -> tuple[str, str]:
        """Return the text right before and behind a temporal patch of frames at these times."""
        return "", ""

    def prompt(self, processor: SessionProcessor, question: str, video: bool) -> Prompt:
        """Return the tokens of a question, with a video before it or without one."""
        return processor.prompt(question, video)

    @property
    def width(self) -> int:
        """Channels of the LLM's input (D)."""
        return self.embedding.embedding_dim

    @property
    def tokens_per_frame(self) -> int | None:
        """Tokens of a frame after projector and pooling (T); None: that depends on its size."""
        return None

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
        """Return the LLM's input for tokens of text, [n, D], or [n, (1 + L) · D]."""
        device = self.embedding.weight.device
        return self.embed_all(torch.tensor(ids, dtype=torch.int64, device=device))

    def embed_all(self, ids: Tensor) -> Tensor:
        """Return the LLM's input for tokens of text, [.., D], or [.., (1 + L) · D]."""
        tokens: Tensor = self.embedding(ids)
        # Text has nothing to add behind a layer.
        return F.pad(tokens, (0, self.levels * self.width)) if self.levels else tokens

    def layer_inputs(self, inputs: Tensor) -> dict[str, Tensor | list[Tensor]]:
        """Return the arguments by which an LLM with `levels` gets its input.

        Args:
            inputs: [B, n, (1 + L) · D].
        """
        return {"inputs_embeds": inputs}

    def text_positions(self, first: int, count: int) -> Tensor:
        """Return the positions of text, the same on all axes, int64 [axes, count]."""
        return torch.arange(first, first + count, device=self.device).expand(self.axes, count)

    def numbering(self, positions: Positions) -> Numbering:
        """Return what numbers the tokens of frames."""
        return Kept() if positions == "kept" else Contiguous()

    def videos(self, given: Mapping[str, Any]) -> list[Tensor]:
        """Return the videos that `generate` is given, each [F, 3, H, W], as `encode` takes them.

        Args:
            given: the `video_arguments`; None for those that were left out.

        Raises:
            ValueError: they do not belong together.
        """
        return list(given["pixel_values_videos"])

    def prompt_positions(
        self, ids: Tensor, mask: Tensor, given: Mapping[str, Any]
    ) -> Tensor | None:
        """Return the positions of prompts with all their videos' tokens, int64 [axes, B, S].

        None: they are counted, as `generate` does by itself.

        Args:
            ids, mask: as `generate` takes them, [B, S].
            given: the `video_arguments`.
        """
        return None

    def run(self, inputs: Tensor, positions: Tensor, cache: SessionCache) -> Tensor:
        """Run the LLM on what comes next and write it into the cache; return its output, [n, D].

        Args:
            inputs: [n, D], or [n, (1 + L) · D].
            positions: int64, [axes, n].
        """
        # Without a cache, gaps between positions would be taken for another sequence.
        with cache.running(self.llm, positions):
            output = self.llm(
                **self.layer_inputs(inputs[None]),
                position_ids=positions if self.axes == 1 else positions[:, None],
                past_key_values=cache,
                use_cache=True,
            )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of outputs of the LLM, float32 [n, vocabulary]."""
        logits: Tensor = self.head(hidden)
        return logits.float()
