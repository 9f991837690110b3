"""How much of the tower's arithmetic a method does, told by the part that runs the tower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from stc_stream.cacher import Cacher
from stc_stream.cacher.part import AttachedTower, BatchRecord, TowerPart
from stc_stream.evaluate.cost import CostModel
from stc_stream.towers import TowerSpec, read_tower


class WatchedTower:
    """A tower part that tells of each batch how much of a dense tower's arithmetic it was.

    A Cacher projects every token's key, and does all else for the tokens that it recomputes. Of any
    other part, the share of the tokens that it computes is taken for that of the arithmetic.

    Args:
        part: what runs the tower.
    """

    def __init__(self, part: TowerPart) -> None:
        self._part = part
        self._attached: AttachedTower | None = None
        self._tower: TowerSpec | None = None
        self._total, self._frames = 0.0, 0

    @property
    def refresh_interval(self) -> int:
        """That of the part."""
        return int(getattr(self._part, "refresh_interval", 1))

    @contextmanager
    def attach(self, tower: nn.Module) -> Iterator[AttachedTower]:
        """Attach the part."""
        self._tower = read_tower(tower)
        with self._part.attach(tower) as attached:
            self._attached = attached
            try:
                yield attached
            finally:
                self._attached = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count the batch that runs inside."""
        assert self._attached is not None
        with self._attached.record() as record:
            yield
        for share in self._shares(record):
            self._total += share
            self._frames += 1

    def take(self) -> float:
        """Return the mean over the frames counted, and begin to count anew."""
        mean = self._total / self._frames if self._frames else 0.0
        self._total, self._frames = 0.0, 0
        return mean

    def _shares(self, record: BatchRecord) -> list[float]:
        if not isinstance(self._attached, Cacher) or not record.layers:
            return [float(share) for share in record.share]
        assert self._tower is not None
        cost = CostModel.of(self._tower, record.layers[0].recomputed.shape[1])
        return [
            1.0 if whole else (cost.keys + share * cost.rest) / (cost.keys + cost.rest)
            for whole, share in zip(record.whole, record.share, strict=True)
        ]
