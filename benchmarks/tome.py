"""Token merging as in ToMe, to hold the Cacher against: fewer tokens a layer, within one frame.

Bipartite soft matching (Bolya et al., "Token Merging: Your ViT But Faster", arXiv 2210.09461): in
every layer the tokens are split in two halves by turns; the tokens of the first that are most like
one of the second, by their keys, are averaged into it, weighted by how many patches each stands
for. Attention counts a merged token as many times. At the end every patch gets the token that it
went into.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stc_stream.towers import TowerLayer, read_tower


class MergedTower:
    """A tower that merges so many tokens in every layer.

    Args:
        module: a tower whose frames are not packed.
        merged: tokens to merge a layer; at most half of what is left.
    """

    def __init__(self, module: nn.Module, merged: int) -> None:
        self._module = module
        self._tower = read_tower(module)
        if self._tower.packed:
            raise TypeError("tokens are merged frame by frame: packed frames cannot be")
        self._merged = merged
        self._sizes = self._places = torch.empty(0)
        self._left: list[int] = []

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the features of one frame, [1, T, C], as the tower's `last_hidden_state`."""
        with self._patched():
            tokens: Tensor = self._module(**inputs).last_hidden_state
        return tokens[:, self._places]

    @property
    def share(self) -> float:
        """The share of the last frame's tokens that went through an MLP, mean over the layers."""
        return sum(self._left) / len(self._left) / len(self._places)

    @contextmanager
    def _patched(self) -> Iterator[None]:
        layers = self._tower.layers
        for number, layer in enumerate(layers):
            layer.module.forward = partial(self._layer, layer, number)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for layer in layers:
                del layer.module.forward

    def _layer(self, layer: TowerLayer, number: int, x: Tensor, *_: Any, **__: Any) -> Any:
        if number == 0:
            self._sizes = x.new_ones(x.shape[1])
            self._places = torch.arange(x.shape[1], device=x.device)
            self._left = []
        normed = layer.norm1(x)
        key = layer.key(normed)
        attended = x + layer.output(self._attend(layer, normed, key))
        x = self._merge(attended, key.unflatten(-1, (layer.heads, -1)).mean(-2))
        self._left.append(x.shape[1])
        x = x + layer.mlp(layer.norm2(x))
        return (x,) if layer.returns_tuple else x

    def _attend(self, layer: TowerLayer, normed: Tensor, key: Tensor) -> Tensor:
        query, value = layer.query(normed), layer.value(normed)
        heads = [t.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for t in (query, key, value)]
        # A token that stands for n patches is as much attended to as n of them.
        mask = self._sizes.log().to(normed.dtype)[None]
        context = functional.scaled_dot_product_attention(*heads, attn_mask=mask, scale=layer.scale)
        return context.transpose(1, 2).flatten(2)

    def _merge(self, x: Tensor, metric: Tensor) -> Tensor:
        tokens = x.shape[1]
        count = min(self._merged, tokens // 2 - self._tower.prefix_tokens)
        if count < 1:
            return x
        ours, theirs, kept = self._matching(metric[0].float(), count)
        sizes = self._sizes.clone()
        weighted = x[0] * sizes[:, None].to(x.dtype)
        weighted.index_add_(0, theirs, weighted[ours])
        sizes.index_add_(0, theirs, sizes[ours])
        # Where each token of before is now: kept ones in order, merged ones with their match.
        now = torch.full((tokens,), -1, dtype=torch.int64, device=x.device)
        now[kept] = torch.arange(len(kept), device=x.device)
        now[ours] = now[theirs]
        self._places = now[self._places]
        self._sizes = sizes[kept]
        return (weighted[kept] / self._sizes[:, None].to(x.dtype))[None]

    def _matching(self, metric: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tokens to merge, what each goes into, and the tokens that stay."""
        metric = functional.normalize(metric, dim=-1)
        scores = metric[::2] @ metric[1::2].T
        # A class token is in no half.
        prefix = self._tower.prefix_tokens
        scores[: math.ceil(prefix / 2)] = -math.inf
        scores[:, : prefix // 2] = -math.inf
        best, match = scores.max(dim=1)
        chosen = best.topk(count).indices
        ours, theirs = 2 * chosen, 2 * match[chosen] + 1
        stays = torch.ones(len(metric), dtype=torch.bool, device=metric.device)
        stays[ours] = False
        return ours, theirs, stays.nonzero().flatten()
