"""The full memory: every token, until the model's context is full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stc_stream.session.memory.layer import PreallocatedLayer, full
from stc_stream.session.memory.layered import LayeredCache
from stc_stream.session.memory.policy import StreamLayout, check_at_least


@dataclass(frozen=True)
class FullMemory:
    """Remembers everything, in memory allocated once; what does not fit is an error.

    At the limit `StreamingSession.feed` raises `MemoryFullError` before it writes anything: the
    session holds what it held, and still answers.

    Attributes:
        tokens: how many tokens of text and video fit; None: the model's context
            (`max_position_embeddings`). The room is allocated with the first of them; on the CPU
            the system gives the memory page by page as it is written.

    Raises:
        ValueError: `tokens` is below 1; when a cache is opened, above the model's context.
        TypeError: `tokens` is not an int.
    """

    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.tokens is not None:
            check_at_least("tokens", self.tokens, 1)

    def open(self, config: Any, layout: StreamLayout | None = None) -> FullCache:
        """Return an empty cache, which transformers' `generate` takes as `past_key_values`.

        Args:
            config: of the LLM, `model.config.get_text_config()`.
            layout: no matter here.
        """
        context = config.max_position_embeddings
        if self.tokens is not None and self.tokens > context:
            raise ValueError(
                f"tokens must be at most {context}, the model's context, but is {self.tokens}"
            )
        return FullCache(
            [PreallocatedLayer(self.tokens or context) for _ in range(config.num_hidden_layers)]
        )


class FullCache(LayeredCache):
    """The cache of a `FullMemory`."""

    def reserve(self, blocks: Sequence[int]) -> None:
        """Check that all of it fits."""
        held, capacity = self.get_seq_length(), self._own[0].capacity
        if held + sum(blocks) > capacity:
            raise full(held, sum(blocks), capacity)
