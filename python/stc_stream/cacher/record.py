"""What a compressed forward did, layer by layer, for pictures and reports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

import stc_kernels


@dataclass(frozen=True, eq=False)
class Comparison:
    """Rows of a batch and the keys they were held against.

    Attributes:
        rows: places in the batch, int64 [F].
        current: keys of these rows, [F, T, C].
        reference: keys of each row's reference, [F, T, C].
    """

    rows: Tensor
    current: Tensor
    reference: Tensor


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """What one layer did with each token of a batch of B rows.

    Attributes:
        recomputed: bool [B, T], whether the token was recomputed; all of a refresh row were.
        refreshed: bool [B], whether the row was a refresh frame.
    """

    recomputed: Tensor
    refreshed: Tensor
    _comparisons: tuple[Comparison, ...] = field(repr=False)
    _metric: str = field(repr=False)

    def similarity(self) -> Tensor:
        """Return each token's similarity to its reference, float32 [B, T]; NaN on refresh rows."""
        similarity = torch.full(
            self.recomputed.shape, torch.nan, dtype=torch.float32, device=self.recomputed.device
        )
        for comparison in self._comparisons:
            similarity[comparison.rows] = stc_kernels.patch_similarity(
                comparison.current, comparison.reference, metric=self._metric
            )
        return similarity


class Recording:
    """The last compressed forward inside `Cacher.record()`.

    Attributes:
        layers: a `LayerRecord` for each layer that ran; empty before the first forward.
    """

    def __init__(self) -> None:
        self.layers: tuple[LayerRecord, ...] = ()

    def __iter__(self) -> Iterator[LayerRecord]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)
