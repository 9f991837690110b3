"""The attention of a compressed layer: rotary positions, windows, few queries and all keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise

import torch
from torch import Tensor
from torch.nn import functional

from stc_stream.towers import TowerLayer


@dataclass(frozen=True, eq=False)
class Positions:
    """Where the tokens of a frame are, the same for all frames of a kind.

    Attributes:
        tokens: tokens a frame, prefix included (T).
        cos, sin: of the rotary embedding, [T, D] for heads of D channels; None: there is none.
        windows: tokens at which a window of attention ends, ascending; None: one window.
    """

    tokens: int
    cos: Tensor | None = None
    sin: Tensor | None = None
    windows: tuple[int, ...] | None = None

    @cached_property
    def runs(self) -> tuple[tuple[int, int, int], ...]:
        """Neighbouring windows of one size: (first token, number of windows, their size)."""
        ends = (0, *(self.windows or (self.tokens,)))
        sizes = [end - start for start, end in pairwise(ends)]
        found, start = [], 0
        for size, group in groupby(sizes):
            count = len(list(group))
            found.append((start, count, size))
            start += count * size
        return tuple(found)

    def window_of(self, device: torch.device) -> Tensor:
        """Return the number of each token's window, int64 [T]."""
        sizes = [size for _, count, size in self.runs for _ in range(count)]
        numbers = torch.arange(len(sizes))
        return numbers.repeat_interleave(torch.tensor(sizes), output_size=self.tokens).to(device)

    def rotate(self, heads: Tensor, index: Tensor | None) -> Tensor:
        """Turn queries or keys, [F, n, H, D], to their positions.

        Args:
            heads: of the tokens that `index` names.
            index: int64 [F, n]; None: of all T tokens.
        """
        if self.cos is None or self.sin is None:
            return heads
        cos, sin = (
            (table if index is None else table[index]).unsqueeze(-2).float()
            for table in (self.cos, self.sin)
        )
        values = heads.float()
        first, second = values.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        return (values * cos + turned * sin).to(heads.dtype)


def attend(
    layer: TowerLayer,
    positions: Positions,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    index: Tensor | None = None,
) -> Tensor:
    """Return the context before the output projection, [F, n, C].

    Args:
        layer: gives heads, scale and norms.
        positions: of the tokens.
        query: [F, n, C], of the tokens that `index` names.
        key, value: of all tokens, [F, T, C].
        index: int64 [F, n]; None: the queries are of all tokens.
    """
    if layer.query_norm is not None:
        query = layer.query_norm(query)
    if layer.key_norm is not None:
        key = layer.key_norm(key)
    heads = layer.heads
    queries = positions.rotate(query.unflatten(-1, (heads, -1)), index)
    keys = positions.rotate(key.unflatten(-1, (heads, -1)), None)
    values = value.unflatten(-1, (heads, -1))
    if len(positions.runs) == 1 and positions.runs[0][1] == 1:
        return _context(layer, queries, keys, values)
    if index is None:
        return torch.cat(list(_windows(layer, positions, queries, keys, values)), dim=1)
    # Each window has another number of queries: one product with a mask, not many small ones.
    window = positions.window_of(query.device)
    mask = window[index][:, None, :, None] == window
    return _context(layer, queries, keys, values, mask)


def _windows(
    layer: TowerLayer, positions: Positions, query: Tensor, key: Tensor, value: Tensor
) -> Iterator[Tensor]:
    for start, count, size in positions.runs:
        end = start + count * size
        parts = [
            tensor[:, start:end].unflatten(1, (count, size)).flatten(0, 1)
            for tensor in (query, key, value)
        ]
        context = _context(layer, *parts)
        yield context.unflatten(0, (-1, count)).flatten(1, 2)


def _context(
    layer: TowerLayer, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    context = functional.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        scale=layer.scale,
    )
    return context.transpose(1, 2).flatten(2)
