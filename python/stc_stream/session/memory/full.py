"""The full memory: every token, until the model's context is full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from stc_stream.session.memory.layer import PreallocatedLayer, full
from stc_stream.session.memory.policy import SessionCache


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
        if self.tokens is None:
            return
        if isinstance(self.tokens, bool) or not isinstance(self.tokens, int):
            raise TypeError(f"tokens must be an int, but is {self.tokens!r}")
        if self.tokens < 1:
            raise ValueError(f"tokens must be at least 1, but is {self.tokens}")

    def open(self, config: Any) -> FullCache:
        """Return an empty cache, which transformers' `generate` takes as `past_key_values`.

        Args:
            config: of the LLM, `model.config.get_text_config()`.
        """
        context = config.max_position_embeddings
        if self.tokens is not None and self.tokens > context:
            raise ValueError(
                f"tokens must be at most {context}, the model's context, but is {self.tokens}"
            )
        return FullCache(
            [PreallocatedLayer(self.tokens or context) for _ in range(config.num_hidden_layers)]
        )


class FullCache(SessionCache):
    """The cache of a `FullMemory`."""

    def __init__(self, layers: list[PreallocatedLayer]) -> None:
        super().__init__(layers=[*layers])

    def reserve(self, blocks: Sequence[int]) -> None:
        """Check that all of it fits."""
        held, capacity = self.get_seq_length(), self._own[0].capacity
        if held + sum(blocks) > capacity:
            raise full(held, sum(blocks), capacity)

    def roll_back(self, held: int) -> None:
        """Leave the first `held` tokens."""
        for layer in self._own:
            layer.crop(min(held - layer.get_seq_length(), 0))

    def fork(self) -> FullCache:
        """Return a cache that starts with what this one holds, and copies no keys."""
        return FullCache([layer.fork(may_borrow=False) for layer in self._own])

    def borrow(self) -> FullCache:
        """Return a fork that writes behind the stream's tokens as long as nobody else does."""
        return FullCache([layer.fork(may_borrow=True) for layer in self._own])

    def own(self) -> None:
        """Copy what a fork shares into memory of its own, once."""
        for layer in self._own:
            layer.own()

    @property
    def bytes_device(self) -> int:
        """Bytes of the keys and values held."""
        return sum(layer.bytes_held for layer in self._own)

    @property
    def bytes_host(self) -> int:
        """None lie in host memory (0)."""
        return 0

    @property
    def bytes_reserved(self) -> int:
        """Bytes allocated, used or not."""
        return sum(layer.bytes_reserved for layer in self._own)

    @property
    def _own(self) -> list[PreallocatedLayer]:
        return cast("list[PreallocatedLayer]", self.layers)
