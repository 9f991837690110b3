"""Where tokens of a stream are among a model's positions: one axis, unless a family has more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Positions = Literal["kept", "contiguous"]


@dataclass(frozen=True)
class TemporalPatch:
    """What a tower takes as one: a frame, or the frames that make a temporal patch.

    Attributes:
        rows, columns: of its tokens, as the LLM gets them.
        times: of its frames, in seconds.
        before, behind: tokens of text right before it and behind it.
    """

    rows: int
    columns: int
    times: tuple[float, ...]
    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()

    @property
    def text(self) -> int:
        """How many tokens of text are around it."""
        return len(self.before) + len(self.behind)

    @property
    def tokens(self) -> int:
        """How many tokens it has (T)."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Place:
    """How far a stream is along a model's positions.

    Attributes:
        text: the position that a token of text gets next.
        reach: the first position that no token has, on any axis.
        start: that at which the video starts; None: it has not started.
        steps: from there to its last temporal patch, on the axis of time.
        began, seconds: when the video began, and its last temporal patch.
    """

    text: int = 0
    reach: int = 0
    start: int | None = None
    steps: int = 0
    began: float = 0.0
    seconds: float = 0.0

    def after_text(self, count: int) -> Place:
        """Return the place behind `count` tokens of text."""
        text = self.text + count
        return replace(self, text=text, reach=max(self.reach, text))


class Numbering(ABC):
    """Gives the kept tokens of temporal patches their positions."""

    @abstractmethod
    def positions(self, place: Place, patch: TemporalPatch, index: Tensor) -> Tensor:
        """Return the positions of what is kept of the next temporal patch, int64 [axes, k].

        Args:
            index: the kept tokens' places in it, int64 [k].
        """

    @abstractmethod
    def after(self, place: Place, patch: TemporalPatch, kept: int) -> Place:
        """Return the place behind a temporal patch of which `kept` are kept, before its text."""


class Kept(Numbering):
    """A token has the position that it has among all tokens, on one axis."""

    def positions(self, place: Place, patch: TemporalPatch, index: Tensor) -> Tensor:
        """Return the tokens' own positions, [1, k]."""
        return (place.text + index)[None]

    def after(self, place: Place, patch: TemporalPatch, kept: int) -> Place:
        """Return the place behind all tokens."""
        return place.after_text(patch.tokens)


class Contiguous(Numbering):
    """Kept tokens are numbered without gaps, on one axis."""

    def positions(self, place: Place, patch: TemporalPatch, index: Tensor) -> Tensor:
        """Return the next positions, [1, k]."""
        return torch.arange(place.text, place.text + len(index), device=index.device)[None]

    def after(self, place: Place, patch: TemporalPatch, kept: int) -> Place:
        """Return the place behind the kept tokens."""
        return place.after_text(kept)
