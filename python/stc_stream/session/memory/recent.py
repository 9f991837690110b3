"""The recent memory: the last frames, which the LLM reads anew for a question."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stc_stream.session.memory.full import FullCache
from stc_stream.session.memory.layer import PreallocatedLayer
from stc_stream.session.memory.policy import (
    Block,
    KeptFrame,
    Prefill,
    Ready,
    StreamLayout,
    StreamMemory,
    check_at_least,
)
from stc_stream.session.numbering import Place

ANSWER_ROOM = 512
"""Tokens of questions and answers for which there is room behind the frames from the first."""


@dataclass(frozen=True)
class RecentMemory:
    """Remembers the last frames, and no keys: they are prefilled anew when something is asked.

    So an answer is that of a new session which was fed these frames' kept tokens alone; positions
    start anew. Feeding a frame costs no prefill. Questions between two frames share one.

    Attributes:
        frames: how many are remembered. Where two frames make a temporal patch, half as many
            patches, at least one; one that waits for its second frame is among them.

    Raises:
        TypeError: `frames` is not an int.
        ValueError: it is below 1; when a memory is opened for kept positions, as many frames have
            more tokens than the model's context.

    Source: SimpleStream, arXiv 2604.02317.
    """

    frames: int = 4

    def __post_init__(self) -> None:
        check_at_least("frames", self.frames, 1)

    def open(self, config: Any, layout: StreamLayout | None = None) -> RecentFrames:
        """Return an empty memory.

        Args:
            config: of the LLM, `model.config.get_text_config()`.
            layout: of the stream.
        """
        layout = layout or StreamLayout()
        context, tokens = config.max_position_embeddings, layout.tokens_per_frame
        kept = layout.positions == "kept"
        if kept and tokens and layout.before + self.frames * tokens > context:
            raise ValueError(
                f"frames must be at most {(context - layout.before) // tokens}, for {tokens} "
                f"tokens each and {layout.before} of text before them in the model's context of "
                f"{context} positions, but is {self.frames}"
            )
        most = max(self.frames // layout.frames_per_patch, 1)
        return RecentFrames(most, config.num_hidden_layers, layout)


class RecentFrames(StreamMemory):
    """The memory of a `RecentMemory`.

    Args:
        most: frames (temporal patches) to remember.
        layers: of the LLM.
        layout: of the stream.
    """

    def __init__(self, most: int, layers: int, layout: StreamLayout) -> None:
        self._most = most
        self._layers = layers
        self._layout = layout
        self._frames: tuple[KeptFrame, ...] = ()
        self._forgotten = 0
        self._prefilled: tuple[int, FullCache, Place] | None = None

    def reserve(self, blocks: Sequence[int]) -> None:
        """Refuse nothing: older frames make room."""

    def span(self, end: Place, blocks: Sequence[Block], count: int) -> int:
        """Return how many positions the text and the last frames take."""
        held = [frame.block for frame in self._frames]
        return self._layout.place([*held, *blocks][-self._most :]).reach

    def take(self, frames: Sequence[KeptFrame], place: Place, prefill: Prefill) -> Place:
        """Remember the last of the frames."""
        # A frame's tokens are a part of its chunk's, which would stay with it.
        new = [replace(frame, tokens=frame.tokens.clone()) for frame in frames[-self._most :]]
        left = (*self._frames, *new)[-self._most :]
        forgotten = self._forgotten + len(self._frames) + len(frames) - len(left)
        vars(self).update(_frames=left, _forgotten=forgotten, _prefilled=None)
        return place

    def answering(self, place: Place, prefill: Prefill, more: int = 0) -> Ready:
        """Prefill the frames, if that was not done since the last one, and return a fork."""
        if self._prefilled is None or self._prefilled[0] != more:
            room = self.tokens_held + ANSWER_ROOM
            cache = FullCache([PreallocatedLayer(room) for _ in range(self._layers)])
            frames = self._frames[max(len(self._frames) + more - self._most, 0) :]
            # Before the first frame there is no text either.
            end = prefill(frames, Place(), cache) if self._frames else Place()
            self._prefilled = more, cache, end
        _, cache, end = self._prefilled
        return Ready(cache.borrow(), end, end.reach)

    def save(self) -> Any:
        """Return all that is remembered, which is never changed."""
        return dict(vars(self))

    def restore(self, saved: Any) -> None:
        """Remember what was remembered then."""
        vars(self).update(saved)

    def fork(self) -> RecentFrames:
        """Return a memory of the same frames, which are not copied."""
        other = copy.copy(self)
        other._prefilled = None
        return other

    def own(self) -> None:
        """Copy nothing: frames are never changed."""

    @property
    def tokens_held(self) -> int:
        """Tokens of the text before the frames, and of the frames."""
        text = self._layout.before if self._frames else 0
        return sum((frame.count for frame in self._frames), text)

    @property
    def frames_forgotten(self) -> int:
        """Frames before the last ones."""
        return self._forgotten

    @property
    def bytes_device(self) -> int:
        """Bytes of the frames' tokens, and of the last question's prefill."""
        prefilled = 0 if self._prefilled is None else self._prefilled[1].bytes_device
        return self._bytes + prefilled

    @property
    def bytes_host(self) -> int:
        """None lie in host memory (0)."""
        return 0

    @property
    def bytes_reserved(self) -> int:
        """Bytes allocated, used or not."""
        prefilled = 0 if self._prefilled is None else self._prefilled[1].bytes_reserved
        return self._bytes + prefilled

    @property
    def _bytes(self) -> int:
        return sum(frame.tokens.nbytes + frame.index.nbytes for frame in self._frames)
