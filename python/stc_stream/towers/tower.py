"""What is read from a vision tower, whatever its family."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, eq=False)
class TowerLayer:
    """The parts of one pre-norm transformer layer: x + A(LN1 x), then h + MLP(LN2 h).

    Attributes:
        module: the layer, as the encoder calls it.
        attention: the attention branch's module, whose parts are called in its place.
        norm1, norm2: the layer norms before attention and before the MLP.
        query, key, value, output: the projections of the attention branch, C to C.
        mlp: the MLP, any module from [n, C] to [n, C].
        heads: number of attention heads.
        scale: factor on the attention logits.
        attention_dropout: probability used in training mode.
    """

    module: nn.Module
    attention: nn.Module
    norm1: nn.Module
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    norm2: nn.Module
    mlp: nn.Module
    heads: int
    scale: float
    attention_dropout: float


@dataclass(frozen=True, eq=False)
class Tower:
    """A vision tower inside a model.

    Attributes:
        family: name of the family that reads it.
        path: dotted path of the tower's module in the model; empty for the model itself.
        encoder: the module that calls the layers one after the other.
        layers: the layers, in the order they are called.
    """

    family: str
    path: str
    encoder: nn.Module
    layers: tuple[TowerLayer, ...]

    @property
    def width(self) -> int:
        """Channels a token (C)."""
        return self.layers[0].key.in_features
