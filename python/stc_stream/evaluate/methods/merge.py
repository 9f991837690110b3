"""Token merging as in ToMe: fewer tokens a layer, within one frame."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from stc_stream.evaluate.patched import PatchedTower
from stc_stream.towers import TowerLayer


@dataclass(frozen=True)
class TokenMerging:
    """In every layer the tokens most like another of the same frame are averaged into it.

    Bipartite soft matching (Bolya et al., "Token Merging: Your ViT But Faster", arXiv 2210.09461):
    in every layer the tokens are split in two halves by turns; the tokens of the first that are
    most like one of the second, by their keys, are averaged into it, weighted by how many patches
    each stands for. Attention counts a merged token as many times. Unlike the paper's classifier,
    a video model needs a token a patch: of what a layer gives, every patch gets the token that it
    went into, and the next layer goes on with the merged ones.

    Attributes:
        merged: tokens to merge a layer; at most half of what is left.
    """

    merged: int = 32

    def __post_init__(self) -> None:
        if self.merged < 0:
            raise ValueError(f"merged must be at least 0, but is {self.merged}")

    def attach(self, tower: nn.Module) -> MergingTower:
        """Return the tower, which merges tokens until the context is left.

        Raises:
            TypeError: a tower whose frames come packed.
        """
        return MergingTower(tower, self.merged)


class MergingTower(PatchedTower):
    """A tower that merges tokens in every layer.

    Args:
        model: a vision tower whose frames are not packed, or a model that holds exactly one.
        merged: tokens to merge a layer.

    Raises:
        TypeError: packed frames.
    """

    def __init__(self, model: nn.Module, merged: int) -> None:
        super().__init__(model)
        if self.tower.packed:
            raise TypeError("tokens are merged frame by frame: packed frames cannot be")
        self._merged = merged
        # How many patches a token stands for, the token that each patch went into, and the tokens.
        self._sizes = self._places = self._tokens = torch.empty(0)
        self._left: list[int] = []
        for number, layer in enumerate(self.tower.layers):
            self.replace_forward(layer.module, partial(self._layer, layer, number))

    def forget(self, *streams: Hashable) -> None:
        """Let go of the last batch's bookkeeping: nothing is remembered of a stream."""
        self._sizes = self._places = self._tokens = torch.empty(0)

    def _layer(self, layer: TowerLayer, number: int, x: Tensor, *more: Any, **named: Any) -> Any:
        # Options that a whole model passes down are no matter.
        if any(isinstance(each, Tensor) for each in tree_leaves((more, named))):
            raise TypeError(
                "tokens cannot be merged in a tower whose layers are given more than tokens "
                "(positions, masks)"
            )
        frames, tokens, _ = x.shape
        if number == 0:
            self.names(frames)
            self._sizes = x.new_ones(frames, tokens)
            self._places = torch.arange(tokens, device=x.device).expand(frames, -1)
            self._left = []
            self._tokens = x
        # What went on from the last layer; what came is that with a token a patch.
        x = self._tokens
        normed = layer.norm1(x)
        key = layer.key(normed)
        attended = x + layer.output(self._attend(layer, normed, key))
        x = self._merge(attended, key.unflatten(-1, (layer.heads, -1)).mean(-2))
        self._left.append(x.shape[1])
        self._tokens = x + layer.mlp(layer.norm2(x))
        if number == len(self.tower.layers) - 1:
            share = sum(self._left) / len(self._left) / self._places.shape[1]
            self.note([False] * frames, [share] * frames)
        # A model may take the features of any layer, and wants a token a patch of each.
        x = self._tokens.gather(1, _wide(self._places, self._tokens))
        return (x,) if layer.returns_tuple else x

    def _attend(self, layer: TowerLayer, normed: Tensor, key: Tensor) -> Tensor:
        query, value = layer.query(normed), layer.value(normed)
        if layer.query_norm is not None:
            query = layer.query_norm(query)
        if layer.key_norm is not None:
            key = layer.key_norm(key)
        q, k, v = (t.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for t in (query, key, value))
        # A token that stands for n patches is as much attended to as n of them.
        mask = self._sizes.log().to(normed.dtype)[:, None, None]
        context = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=layer.scale
        )
        return context.transpose(1, 2).flatten(2)

    def _merge(self, x: Tensor, metric: Tensor) -> Tensor:
        frames, tokens, _ = x.shape
        count = min(self._merged, tokens // 2 - self.tower.prefix_tokens)
        if count < 1:
            return x
        merging, into, kept = self._matching(metric.float(), count)
        sizes = self._sizes
        weighted = x * sizes[..., None].to(x.dtype)
        weighted = weighted.scatter_add(1, _wide(into, x), weighted.gather(1, _wide(merging, x)))
        sizes = sizes.scatter_add(1, into, sizes.gather(1, merging)).gather(1, kept)
        # Where each token of before is now: kept ones in order, merged ones with their match.
        order = torch.arange(kept.shape[1], device=x.device).expand(frames, -1)
        now = torch.zeros(frames, tokens, dtype=torch.int64, device=x.device)
        now.scatter_(1, kept, order)
        now.scatter_(1, merging, now.gather(1, into))
        self._places = now.gather(1, self._places)
        self._sizes = sizes
        return weighted.gather(1, _wide(kept, x)) / sizes[..., None].to(x.dtype)

    def _matching(self, metric: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return each frame's tokens to merge, what each goes into, and the tokens that stay."""
        metric = functional.normalize(metric, dim=-1)
        scores = metric[:, ::2] @ metric[:, 1::2].mT
        # A class token is in no half.
        prefix = self.tower.prefix_tokens
        scores[:, : math.ceil(prefix / 2)] = -math.inf
        scores[:, :, : prefix // 2] = -math.inf
        best, match = scores.max(dim=-1)
        chosen = best.topk(count).indices
        merging, into = 2 * chosen, 2 * match.gather(1, chosen) + 1
        goes = torch.zeros(metric.shape[:2], dtype=torch.int8, device=metric.device)
        goes.scatter_(1, merging, 1)
        kept = goes.argsort(dim=1, stable=True)[:, : metric.shape[1] - count]
        return merging, into, kept


def _wide(index: Tensor, tokens: Tensor) -> Tensor:
    """Return places [F, n] as an index of whole tokens, [F, n, C]."""
    return index[..., None].expand(-1, -1, tokens.shape[-1])


METHOD = TokenMerging
