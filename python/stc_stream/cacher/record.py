"""What a compressed forward did, layer by layer, for pictures and reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

    Tokens are counted with the prefix (class token, registers); of frames of several sizes, T is
    the largest's, and the others end in tokens that were not recomputed.

    Attributes:
        recomputed: bool [B, T], whether the token was recomputed; all of a refresh row were.
        refreshed: bool [B], whether the row was a refresh frame.
    """

    recomputed: Tensor
    refreshed: Tensor
    _comparisons: tuple[Comparison, ...] = field(repr=False)
    _metric: str = field(repr=False)

    def similarity(self) -> Tensor:
        """Return each token's similarity to its reference, float32 [B, T].

        NaN on refresh rows, and for the prefix, which is compared with nothing.
        """
        similarity = torch.full(
            self.recomputed.shape, torch.nan, dtype=torch.float32, device=self.recomputed.device
        )
        for comparison in self._comparisons:
            found = stc_kernels.patch_similarity(
                comparison.current, comparison.reference, metric=self._metric
            )
            similarity[comparison.rows, : found.shape[1]] = found
        return similarity


class Recording:
    """The last compressed forward inside `Cacher.record()`.

    Attributes:
        layers: a `LayerRecord` for each layer that ran; empty before the first forward.
    """

    def __init__(self) -> None:
        self.layers: tuple[LayerRecord, ...] = ()

    @property
    def whole(self) -> tuple[bool, ...]:
        """Whether each row was a refresh frame, computed whole."""
        return tuple(self.layers[0].refreshed.tolist()) if self.layers else ()

    @property
    def share(self) -> tuple[float, ...]:
        """The share of each row's tokens that were recomputed, mean over the layers.

        Of frames of several sizes, it is a share of the largest's tokens.
        """
        if not self.layers:
            return ()
        shares = torch.stack([layer.recomputed.float().mean(1) for layer in self.layers])
        return tuple(shares.mean(0).tolist())

    def __iter__(self) -> Iterator[LayerRecord]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


def joined_records(
    groups: Sequence[tuple[Sequence[int], Sequence[LayerRecord]]],
) -> tuple[LayerRecord, ...]:
    """Join what was recorded of frames of one size with what was of others.

    Args:
        groups: for each size, the rows of the batch and a record a layer.
    """
    if len(groups) == 1:
        return tuple(groups[0][1])
    layers = zip(*(records for _, records in groups), strict=True)
    return tuple(
        _joined([rows for rows, _ in groups], list(records)) for records in layers if records
    )


def _joined(rows: Sequence[Sequence[int]], records: Sequence[LayerRecord]) -> LayerRecord:
    first = records[0].recomputed
    batch = sum(map(len, rows))
    tokens = max(record.recomputed.shape[1] for record in records)
    recomputed = torch.zeros(batch, tokens, dtype=torch.bool, device=first.device)
    refreshed = torch.zeros(batch, dtype=torch.bool, device=first.device)
    comparisons = []
    for own, record in zip(rows, records, strict=True):
        places = torch.tensor(own, device=first.device)
        recomputed[places, : record.recomputed.shape[1]] = record.recomputed
        refreshed[places] = record.refreshed
        comparisons += [
            Comparison(places[each.rows], each.current, each.reference)
            for each in record._comparisons
        ]
    return LayerRecord(recomputed, refreshed, tuple(comparisons), records[0]._metric)
