"""What may run a tower: a Cacher, or something used in its place."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import nn

from stc_stream.cacher.record import LayerRecord


class BatchRecord(Protocol):
    """What became of each frame of the last batch."""

    @property
    def whole(self) -> Sequence[bool]:
        """Whether the frame was computed whole, as a dense tower does."""

    @property
    def share(self) -> Sequence[float]:
        """The share of its tokens that were computed, mean over the layers."""

    @property
    def layers(self) -> Sequence[LayerRecord]:
        """What each layer did with each token; empty where the method doesn't tell."""


class AttachedTower(Protocol):
    """A tower that a method runs, until its context is left."""

    def streams(self, names: Sequence[Hashable]) -> AbstractContextManager[None]:
        """Name the stream of each frame of the batches run inside; without names all are one."""

    def reset(self, *streams: Hashable) -> None:
        """Forget these streams, or all when none is named."""

    def record(self) -> AbstractContextManager[BatchRecord]:
        """Give what became of the last batch that ran inside."""


class TowerPart(Protocol):
    """What runs the tower: a Cacher's settings, or those of something used in its place.

    One whose frames are computed whole now and then has a `refresh_interval`, the frames from one
    such frame of a stream to the next.
    """

    def attach(self, tower: nn.Module) -> AbstractContextManager[AttachedTower]:
        """Change how a tower runs, on this instance alone, until the context is left.

        Args:
            tower: a vision tower that can be read, or a model that holds exactly one.

        Raises:
            TypeError: a tower that the method can't run.
        """
