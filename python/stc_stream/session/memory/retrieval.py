"""The retrieval memory: every frame in host memory, of which a question brings back the nearest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stc_stream.session.memory.archive import Archive
from stc_stream.session.memory.layer import PreallocatedLayer
from stc_stream.session.memory.layered import LayeredCache
from stc_stream.session.memory.policy import (
    MemoryFullError,
    Prefill,
    Ready,
    StreamLayout,
    check_at_least,
    check_no_window,
)
from stc_stream.session.memory.rotary import Rotary
from stc_stream.session.memory.window import Ends, WindowCache, WindowLayer
from stc_stream.session.numbering import Place

if TYPE_CHECKING:
    from typing_extensions import Self

ANSWER_ROOM = 512
"""Tokens of a question and its answer for which there is room behind the frames from the first."""


@dataclass(frozen=True)
class RetrievalMemory:
    """Remembers every frame in host memory; a question sees the frames that are nearest to it.

    While frames are taken in, a token sees the text before the video and a sliding window, as with
    `WindowMemory`. Each frame's keys, not turned, and values are also copied to host memory. A
    question sees the text before the video, and in each layer the frames whose mean key is nearest
    by cosine to the mean of its own queries there (the newline and the text behind the video), in
    order and at contiguous positions right before it: not the window. Which those were is in
    `StreamingSession.retrieved`.

    Where the host memory ends, the oldest frames go, a page of them at a time, and are counted
    (`SessionStats.frames_forgotten`). Where the stream's positions end is as with `WindowMemory`.

    Attributes:
        window_tokens: last tokens that a frame sees while it is taken in; less, where the model's
            context is shorter.
        blocks: frames that a question brings back in each layer, at most.
        host_bytes: what may be allocated in host memory; None: a half of the machine's memory.

    Raises:
        TypeError: a setting is not an int; when a cache is opened, a model whose positions have
            several axes.
        ValueError: a setting below 1; when a cache is opened, rotary positions that keys can't be
            moved in exactly, layers with a window of their own.

    Source: ReKV, arXiv 2503.00540. There the mean is of the question's queries alone, in a run
    before the answer's; here of all that follows the video, in the same run.
    """

    window_tokens: int = 15000
    blocks: int = 64
    host_bytes: int | None = None

    def __post_init__(self) -> None:
        check_at_least("window_tokens", self.window_tokens, 1)
        check_at_least("blocks", self.blocks, 1)
        if self.host_bytes is not None:
            check_at_least("host_bytes", self.host_bytes, 1)

    def open(self, config: Any, layout: StreamLayout | None = None) -> RetrievalCache:
        """Return an empty cache. In transformers' `generate` it is one with a window.

        Args:
            config: of the LLM, `model.config.get_text_config()`.
            layout: of the stream; None: positions are kept, and there is no text before it.
        """
        layout = layout or StreamLayout()
        rotary = Rotary.of(config, "RetrievalMemory")
        check_no_window(config, "RetrievalMemory")
        context, layers = config.max_position_embeddings, config.num_hidden_layers
        window = min(self.window_tokens, context - layout.before)
        moved = rotary if layout.positions == "contiguous" else None
        limit = _half_of_memory() if self.host_bytes is None else self.host_bytes
        return RetrievalCache(
            [WindowLayer(layout.before, window, moved, context) for _ in range(layers)],
            Ends(layout.before, layout.before),
            Archive(layers, limit),
            Recall(rotary, self.blocks, layout.before, context),
        )


@dataclass(frozen=True, eq=False)
class Recall:
    """How frames are brought back: at most so many, behind the text, within the context."""

    rotary: Rotary
    blocks: int
    before: int
    context: int


class RetrievalCache(WindowCache):
    """The cache of a `RetrievalMemory`."""

    def __init__(
        self, layers: Sequence[WindowLayer], ends: Ends, archive: Archive, recall: Recall
    ) -> None:
        super().__init__(layers, ends)
        self._archive = archive
        self._recall = recall
        self._positions: Tensor | None = None

    def reserve(self, blocks: Sequence[int]) -> None:
        """Check that each frame has room in the window, and what is brought back in the context."""
        super().reserve(blocks)
        recall, archive = self._recall, self._archive
        frames = min(archive.blocks + len(blocks) - 1, recall.blocks)
        longest = max(archive.longest, *blocks[1:])
        if recall.before + frames * longest >= recall.context:
            raise MemoryFullError(
                f"the model's context has {recall.context} positions, which {frames} frames of "
                f"{longest} tokens would fill when they are brought back: nothing was lost. Give "
                "the memory fewer blocks, or keep fewer tokens of each frame"
            )

    def make_room(self, blocks: Sequence[int], place: Place) -> tuple[int, Place]:
        """Make room in the window, and in host memory."""
        text = self.get_seq_length() == 0 and self._recall.before > 0
        taken, place = super().make_room(blocks, place)
        self._archive.begin(blocks[int(text) : taken])
        return taken, place

    @contextmanager
    def running(self, llm: Any, positions: Tensor) -> Iterator[None]:
        """Write what comes next to host memory as well."""
        check_attention(llm)
        self._positions = positions[0]
        try:
            yield
        finally:
            self._positions = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append rows to a layer's window, and to host memory; return those of the window."""
        found: tuple[Tensor, Tensor] = super().update(
            key_states, value_states, layer_idx, *args, **kwargs
        )
        if self._positions is not None:
            text = max(self._recall.before - self._windows[layer_idx].seen + key_states.shape[2], 0)
            if text < key_states.shape[2]:
                keys, places = key_states[:, :, text:], self._positions[text:]
                unturned = self._recall.rotary.turn(keys, places, back=True)
                self._archive.write(layer_idx, unturned, value_states[:, :, text:])
        return found

    def answering(self, place: Place, prefill: Prefill, more: int = 0) -> Ready:
        """Return a cache that brings frames back when the question is run."""
        cache = self.borrow()
        return Ready(cache, Place(cache.planned, cache.planned), cache.planned)

    def borrow(self) -> QuestionCache:
        """Return a cache that brings frames back when the question is run."""
        return QuestionCache(
            [layer.sinks() for layer in self._windows], self._archive, self._recall
        )

    def save(self) -> Any:
        """Return each layer's state, and the archive's."""
        return dict(vars(self._archive)), super().save()

    def restore(self, saved: Any) -> None:
        """Take each layer and the archive back to a state."""
        archive, window = saved
        vars(self._archive).update(archive)
        super().restore(window)

    @property
    def tokens_held(self) -> int:
        """Tokens of the text before the video, and of the frames in host memory."""
        return min(self._windows[0].rows_held, self._recall.before) + self._archive.rows

    @property
    def frames_forgotten(self) -> int:
        """Frames that had no room in host memory."""
        return self._archive.dropped

    @property
    def bytes_host(self) -> int:
        """Bytes of the frames in host memory."""
        return self._archive.bytes_held

    @property
    def bytes_reserved(self) -> int:
        """Bytes allocated on the device and in host memory, used or not."""
        return super().bytes_reserved + self._archive.bytes_reserved

    def _forked(self, may_borrow: bool) -> Self:
        other = super()._forked(may_borrow)
        other._archive = self._archive.fork()
        return other


class QuestionCache(LayeredCache):
    """What a question and its answer see: text, frames that are brought back, themselves.

    Args:
        sinks: keys and values of the text before the video, of each layer; None: no frame came.
        archive: the frames.
        recall: how many of them.
    """

    def __init__(
        self, sinks: Sequence[tuple[Tensor, Tensor] | None], archive: Archive, recall: Recall
    ) -> None:
        counts = sorted(archive.counts)[-recall.blocks :]
        text = 0 if sinks[0] is None else sinks[0][0].shape[2]
        self.planned = text + sum(counts)
        super().__init__([RecalledLayer(self.planned) for _ in sinks])
        self._sinks, self._archive, self._recall = sinks, archive, recall
        self._uneven = bool(counts) and counts[0] != counts[-1]
        self._found: list[tuple[int, ...]] = []

    def reserve(self, blocks: Sequence[int]) -> None:
        """Refuse nothing: the context is the limit."""

    def running(self, llm: Any, positions: Tensor) -> Any:
        """Bring frames back in the first run, before each layer's attention."""
        if not self.planned:
            return nullcontext()
        if not self._found:
            return hooked(llm, self, self._bring_back)
        return hooked(llm, self, self._cut) if self._uneven else nullcontext()

    @property
    def retrieved(self) -> tuple[tuple[int, ...], ...]:
        """For each layer the numbers of the frames that were brought back."""
        return tuple(self._found)

    def _bring_back(self, attention: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        number, hidden = attention.layer_idx, arguments["hidden_states"]
        sinks = self._sinks[number]
        assert sinks is not None
        keys, values = sinks
        query = mean_query(attention, hidden, keys.shape[1])
        blocks = self._archive.best(number, query, self._recall.blocks)
        if blocks:
            found, its_values = self._archive.read(number, blocks, keys.device)
            places = torch.arange(self.planned - found.shape[2], self.planned)
            turned = self._recall.rotary.turn(found, places)
            keys, values = torch.cat([keys, turned], 2), torch.cat([values, its_values], 2)
        self._layer(number).fill(keys, values)
        self._found.append(tuple(block.number for _, block in blocks))
        return self._cut(attention, arguments)

    def _cut(self, attention: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """Leave as much of the mask as this layer has keys: what is past is seen whole."""
        mask, layer = arguments.get("attention_mask"), self._layer(attention.layer_idx)
        if mask is None or layer.missing == 0:
            return arguments
        return {**arguments, "attention_mask": mask[..., layer.missing :]}

    def _layer(self, number: int) -> RecalledLayer:
        layer = self.layers[number]
        assert isinstance(layer, RecalledLayer)
        return layer


class RecalledLayer(PreallocatedLayer):  # type: ignore[no-untyped-call]
    """A layer of a question: it counts as many rows as the fullest layer has.

    Args:
        planned: rows of text and frames, at most.
    """

    def __init__(self, planned: int) -> None:
        super().__init__(planned + ANSWER_ROOM)
        self._planned = planned
        self.missing = planned

    def fill(self, keys: Tensor, values: Tensor) -> None:
        """Begin with these rows."""
        super().update(keys, values)
        self.missing = self._planned - keys.shape[2]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append rows, and return all; there is always room."""
        end = self.rows_held + key_states.shape[2]
        if end > self.capacity:
            self.capacity = 2 * end
            if self._store is not None:
                self._replace(*self._rows())
        return super().update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self, *args: Any) -> int:
        """Return how many rows there are in the fullest layer."""
        return self.rows_held + self.missing

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Return how many keys the fullest layer will have, and the first one's number."""
        new = query_length.shape[0] if isinstance(query_length, Tensor) else int(query_length)
        return self.get_seq_length() + new, 0


def mean_query(attention: Any, hidden: Tensor, heads: int) -> Tensor:
    """Return the mean of queries that are not turned, summed up for each key head.

    Its cosine with a block's mean key orders blocks as that of all query heads, each with the key
    head that it reads, does.

    Args:
        attention: a layer's module.
        hidden: its input, [1, n, D].
        heads: of keys.

    Returns:
        float32 [H · D], where D is a head's width.
    """
    queries = attention.q_proj(hidden).unflatten(-1, (-1, attention.head_dim))
    if hasattr(attention, "q_norm"):
        queries = attention.q_norm(queries)
    mean = queries[0].float().mean(0).unflatten(0, (heads, -1))
    total: Tensor = mean.sum(1).flatten()
    return total


Around = Callable[[Any, dict[str, Any]], dict[str, Any]]
"""Takes an attention module and its arguments, and returns those that it gets instead."""


@contextmanager
def hooked(llm: Any, cache: QuestionCache, around: Around) -> Iterator[None]:
    """Put a function before each layer's attention, for calls with this cache alone."""

    def before(module: nn.Module, args: Any, arguments: dict[str, Any] | None = None) -> Any:
        # Others' runs pass, also one in another thread that comes between the two steps in which
        # a hook that takes keywords is registered.
        if arguments is None or arguments.get("past_key_values") is not cache:
            return None
        return args, around(module, arguments)

    handles = []
    try:
        for layer in llm.layers:
            handles.append(layer.self_attn.register_forward_pre_hook(before, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_attention(llm: Any) -> None:
    """Refuse an LLM whose queries can't be read.

    Raises:
        TypeError: its layers are of another form than Qwen2's.
    """
    attention = getattr(next(iter(getattr(llm, "layers", [])), None), "self_attn", None)
    if not (hasattr(attention, "q_proj") and hasattr(attention, "head_dim")):
        raise TypeError(
            "RetrievalMemory reads queries of layers with self_attn.q_proj and self_attn.head_dim, "
            f"as Qwen2's, but the model's LLM is a {type(llm).__name__} without"
        )


def _half_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
