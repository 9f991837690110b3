"""The references of all streams: for each layer three tensors that streams share by slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class FrameKind(NamedTuple):
    """What two frames must have in common for one to be the reference of the other."""

    tokens: int
    channels: int
    dtype: torch.dtype
    projected_dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, eq=False)
class LayerReferences:
    """One layer's references, [slots, T, C] each.

    Attributes:
        key, value: projections of the layer-normed input (K_ref, V_ref).
        delta: sum of the attention and the MLP branch's outputs (A_ref + M_ref).
    """

    key: Tensor
    value: Tensor
    delta: Tensor


class ReferencePool:
    """References of the streams whose frames are of one kind; a stream holds one slot.

    The tensors hold exactly the slots that were ever in use at once: a reference is hundreds of
    megabytes in a real tower, next to which copying the others when one is added is nothing.
    """

    def __init__(self, kind: FrameKind, layers: int) -> None:
        self.kind = kind
        self._layers: list[LayerReferences | None] = [None] * layers
        self._slots = 0
        self._free: list[int] = []

    @property
    def bytes(self) -> int:
        """Bytes held, free slots included."""
        held = [layer for layer in self._layers if layer is not None]
        return sum(
            tensor.numel() * tensor.element_size()
            for layer in held
            for tensor in (layer.key, layer.value, layer.delta)
        )

    @property
    def in_use(self) -> int:
        """Slots that streams hold."""
        return self._slots - len(self._free)

    def acquire(self) -> int:
        """Give out a slot."""
        if self._free:
            return self._free.pop()
        self._slots += 1
        return self._slots - 1

    def release(self, slot: int) -> None:
        """Take a slot back."""
        self._free.append(slot)

    def read(self, layer: int) -> LayerReferences:
        """Return a layer's references."""
        references = self._layers[layer]
        if references is None:
            raise RuntimeError(
                f"layer {layer} of the tower was not run on the reference frame, so it has "
                "nothing to reuse: the layers an encoder runs must be the same on every frame"
            )
        return references

    def writable(self, layer: int) -> LayerReferences:
        """Return a layer's references, grown to hold every slot given out."""
        held = self._layers[layer]
        if held is not None and held.key.shape[0] == self._slots:
            return held
        kind = self.kind
        grown = LayerReferences(
            key=self._grown(held.key if held else None, kind.projected_dtype),
            value=self._grown(held.value if held else None, kind.projected_dtype),
            delta=self._grown(held.delta if held else None, kind.dtype),
        )
        self._layers[layer] = grown
        return grown

    def _grown(self, held: Tensor | None, dtype: torch.dtype) -> Tensor:
        shape = (self._slots, self.kind.tokens, self.kind.channels)
        # A tensor made in inference mode could not be written outside it later.
        with torch.inference_mode(False):
            grown = torch.empty(shape, dtype=dtype, device=self.kind.device)
        if held is not None:
            grown[: held.shape[0]].copy_(held)
        return grown
