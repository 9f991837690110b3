"""Attention recorded in a tower, for rules that choose tokens by it."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from stc_stream.evaluate.patched import PatchedTower
from stc_stream.pruner.strategies.attention import TowerAttention
from stc_stream.towers import TowerLayer


@dataclass(frozen=True, eq=False)
class AttentionRecorder:
    """Runs the tower densely, and notes how much attention each patch receives in one layer.

    A tower part and an `AttentionSource` in one, for one tower at a time: attach it to the tower
    (`cacher=` of a session), and give it to the rule (`pruner=`). What the tower ran last can be
    taken once, in order. A copy is the same recorder, since there is one tower.

    Its price is that layer's attention once more, without a fused kernel.

    Attributes:
        layer: counted from the end, as in a list: −1 is the last.
    """

    layer: int = -1
    _held: list[TowerAttention] = field(default_factory=list, init=False, repr=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> AttentionRecorder:
        return self

    def attach(self, tower: nn.Module) -> RecordingTower:
        """Return the tower, which notes attention until the context is left.

        Raises:
            TypeError: a tower whose frames come packed.
            ValueError: a tower without such a layer.
        """
        self._held.clear()
        return RecordingTower(tower, self.layer, self._held)

    def take(self, frames: int, tokens: int) -> TowerAttention:
        """Return the attention of the next frames of the tower's last call, pooled to `tokens`.

        As LLaVA-OneVision pools features: a square of patches, bilinear, to a smaller square.

        Raises:
            ValueError: the tower's last call had fewer frames left; no such squares.
        """
        left = len(self._held[0].received) if self._held else 0
        if frames > left:
            raise ValueError(
                f"the tower must have run the {frames} frames just before, with this recorder "
                f"attached to it, but attention of {left} is left"
            )
        held = self._held.pop()
        values = (held.received, held.from_class, held.keys)
        if frames < left:
            self._held.append(TowerAttention(*(each[frames:] for each in values)))
        received, from_class, keys = (_pooled(each[:frames], tokens) for each in values)
        return TowerAttention(received, from_class, keys)


class RecordingTower(PatchedTower):
    """A tower that notes the attention of one of its layers.

    Args:
        model: a vision tower whose frames are not packed, or a model that holds exactly one.
        layer: counted from the end.
        held: where to put it, in the place of the last call's.

    Raises:
        TypeError: packed frames.
        ValueError: no such layer.
    """

    def __init__(self, model: nn.Module, layer: int, held: list[TowerAttention]) -> None:
        super().__init__(model)
        if self.tower.packed:
            raise TypeError("attention is recorded frame by frame: packed frames cannot be")
        layers = self.tower.layers
        if not -len(layers) <= layer <= -1:
            raise ValueError(f"layer must be in -{len(layers)}..-1, but is {layer}")
        self._held = held
        module = layers[layer].module
        densely = module.forward
        self.replace_forward(module, partial(self._layer, layers[layer], densely))

    def forget(self, *streams: Hashable) -> None:
        """Let go of the last call's attention."""
        self._held.clear()

    def _layer(self, layer: TowerLayer, densely: Any, x: Tensor, *more: Any, **named: Any) -> Any:
        if any(isinstance(each, Tensor) for each in tree_leaves((more, named))):
            raise TypeError(
                "attention cannot be recorded in a tower whose layers are given more than tokens "
                "(positions, masks)"
            )
        frames = len(x)
        self.names(frames)
        self.note([True] * frames, [1.0] * frames)
        self._held[:] = [self._attention(layer, x)]
        return densely(x, *more, **named)

    def _attention(self, layer: TowerLayer, x: Tensor) -> TowerAttention:
        normed, prefix = layer.norm1(x), self.tower.prefix_tokens
        query, key = layer.query(normed), layer.key(normed)
        if layer.query_norm is not None:
            query = layer.query_norm(query)
        metric = key.unflatten(-1, (layer.heads, -1)).mean(dim=-2)
        if layer.key_norm is not None:
            key = layer.key_norm(key)
        q, k = (each.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for each in (query, key))
        weights = functional.softmax(q @ k.mT * layer.scale, dim=-1, dtype=torch.float32)
        weights = weights.mean(dim=1)[:, :, prefix:]
        received = weights.mean(dim=1)
        from_class = weights[:, 0] if prefix else received
        return TowerAttention(received, from_class, metric[:, prefix:].float())


def _pooled(values: Tensor, tokens: int) -> Tensor:
    """Return values of patches, [F, N] or [F, N, C], of as many tokens."""
    patches = values.shape[1]
    if patches == tokens:
        return values
    side, pooled = math.isqrt(patches), math.isqrt(tokens)
    if side * side != patches or pooled * pooled != tokens:
        raise ValueError(
            f"tokens must be the tower's {patches} patches or a smaller square of them, but are "
            f"{tokens}"
        )
    grid = values.reshape(len(values), side, side, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, (pooled, pooled), mode="bilinear")
    return grid.flatten(2).mT.reshape(len(values), tokens, *values.shape[2:])
