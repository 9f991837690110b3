"""The references of all streams: for each layer three tensors that streams share by entry."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stc_stream.cacher.queues import StreamUses
from stc_stream.cacher.waits import index_tensor

_GENERATIONS = itertools.count()


class FrameKind(NamedTuple):
    """What two frames must have in common for one to be the reference of the other.

    Attributes:
        tokens: tokens a frame, prefix included (T).
        channels: channels a token (C).
        grid: rows and columns of patches; None: not told.
        dtype: of the tokens.
        projected_dtype: of queries, keys and values.
        device: where they are.
    """

    tokens: int
    channels: int
    grid: tuple[int, int] | None
    dtype: torch.dtype
    projected_dtype: torch.dtype
    device: torch.device


class LayerShape(NamedTuple):
    """Channels of what a layer holds of a token: of keys, of values."""

    key: int
    value: int


@dataclass(frozen=True, eq=False)
class LayerReferences:
    """One layer's references, [entries, T, channels] each.

    Attributes:
        key, value: projections of the layer-normed input (K_ref, V_ref); keys of prefix tokens
            are NaN, which has them recomputed before all others.
        scale: what 8-bit keys are multiplied with, float32 [entries, T]; None: keys are
            as they are.
        delta: sum of the attention and the MLP branch's outputs (A_ref + M_ref).
    """

    key: Tensor
    value: Tensor
    delta: Tensor
    scale: Tensor | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors held."""
        held = (self.key, self.value, self.delta)
        return held if self.scale is None else (*held, self.scale)

    def some(self, entries: Sequence[int]) -> LayerReferences:
        """Return copies of references, ascending, without entries that it has no room for."""
        here = [entry for entry in entries if entry < self.key.shape[0]]
        index = index_tensor(here, self.key.device)
        # A tensor made in inference mode could not be written outside it later.
        with torch.inference_mode(False), torch.no_grad():
            copies = [tensor.index_select(0, index) for tensor in self.tensors()]
        return LayerReferences(*copies)

    def keys(self, index: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return keys to compare with and which of them each frame is held against.

        Args:
            index: the entry of each frame, int64 [F].
            dtype: of the keys that are compared with them.
        """
        if self.scale is None:
            return self.key, index
        key, scale = self.key.index_select(0, index), self.scale.index_select(0, index)
        return _restored(key, scale, dtype), torch.arange(index.shape[0], device=index.device)


@dataclass(frozen=True, eq=False)
class Refreshed:
    """What a layer's refresh rows leave, [R, T, channels] each, as in `LayerReferences`."""

    key: Tensor
    value: Tensor
    delta: Tensor


class ReferencePool:
    """References of the streams whose frames are of one kind; a stream holds one entry.

    `generation` is another number whenever the tensors have moved, in any pool.

    Args:
        kind: of the frames.
        layers: what each layer of the tower holds of a token.
        prefix_tokens: tokens that are always recomputed, at the start of a frame.
        int8: whether keys are held in 8 bits.
        slack: whether to grow by half of what is held, so that the tensors move seldom; else they
            hold exactly the entries that were ever in use at once.
    """

    def __init__(
        self,
        kind: FrameKind,
        layers: Sequence[LayerShape],
        prefix_tokens: int = 0,
        int8: bool = False,
        slack: bool = False,
    ) -> None:
        self.kind = kind
        self.generation = next(_GENERATIONS)
        self._shapes = tuple(layers)
        self.prefix_tokens = prefix_tokens
        self._int8 = int8
        self._slack = slack
        self._layers: list[LayerReferences | None] = [None] * len(self._shapes)
        self._depth: list[int] = []
        self._room = 0
        self._allocated = 0
        self._free: list[int] = []
        self._uses = StreamUses()

    @property
    def entry_bytes(self) -> int:
        """Bytes of one stream's reference, over all layers."""
        kind, projected = self.kind, self.kind.projected_dtype.itemsize
        a_token = sum(
            (shape.key + 4 if self._int8 else shape.key * projected)
            + shape.value * projected
            + kind.channels * kind.dtype.itemsize
            for shape in self._shapes
        )
        return kind.tokens * a_token

    @property
    def bytes(self) -> int:
        """Bytes held, free entries included."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())

    @property
    def entries(self) -> int:
        """Entries that there are, free ones included."""
        return len(self._depth)

    @property
    def in_use(self) -> int:
        """Entries that streams hold."""
        return len(self._depth) - len(self._free)

    def use(self) -> None:
        """Note that a forward on the current stream will read and write what is held."""
        self._uses.tell(self.kind.device, self._tensors)

    def acquire(self) -> int:
        """Give out an entry."""
        if self._free:
            return self._free.pop()
        self._depth.append(0)
        return len(self._depth) - 1

    def release(self, entry: int) -> None:
        """Take an entry back."""
        self._depth[entry] = 0
        self._free.append(entry)

    def depth(self, entry: int) -> int:
        """Return how many layers the reference in an entry has."""
        return self._depth[entry]

    def written(self, entry: int, layers: int) -> None:
        """Note that the reference in an entry now has `layers` layers."""
        self._depth[entry] = layers

    def read(self, layer: int) -> LayerReferences:
        """Return a layer's references."""
        references = self._layers[layer]
        if references is None:
            raise RuntimeError(f"layer {layer} has no references")
        return references

    def reserve(self) -> None:
        """Make room for every entry given out, layer by layer as each is next written."""
        if self.entries > self._room:
            self._room = max(self.entries, self._room * 3 // 2) if self._slack else self.entries

    def allocate(self) -> None:
        """Make the room that `reserve` has asked for in all layers now."""
        if self._allocated != self._room:
            for layer in range(len(self._layers)):
                self._writable(layer)
            self._allocated = self._room

    def write(self, layer: int, refreshed: Refreshed, entries: Tensor) -> None:
        """Keep what refresh rows left in a layer.

        Args:
            layer: number of the layer.
            refreshed: what those that are kept left.
            entries: where each goes, int64 on the pool's device.
        """
        references = self._writable(layer)
        key, scale = self._stored_keys(refreshed.key)
        references.key.index_copy_(0, entries, key)
        if references.scale is not None and scale is not None:
            references.scale.index_copy_(0, entries, scale)
        references.value.index_copy_(0, entries, refreshed.value)
        references.delta.index_copy_(0, entries, refreshed.delta)

    @contextmanager
    def kept_as_is(self, entries: Sequence[int]) -> Iterator[None]:
        """Put back, on leaving, what these entries held before."""
        layers = [layer for layer in self._layers if layer is not None]
        index = index_tensor(entries, self.kind.device)
        before = [[each.index_select(0, index) for each in x.tensors()] for x in layers]
        try:
            yield
        finally:
            for layer, held in zip(layers, before, strict=True):
                for tensor, rows in zip(layer.tensors(), held, strict=True):
                    tensor.index_copy_(0, index, rows)

    def as_kept(self, key: Tensor) -> Tensor:
        """Return keys of refresh rows as they will be compared with once they are in the pool."""
        kept, scale = self._stored_keys(key)
        return kept if scale is None else _restored(kept, scale, key.dtype)

    def shrink(self) -> dict[int, int]:
        """Give back the memory of free entries; return where each entry that moved is now."""
        free = set(self._free)
        used = [entry for entry in range(self.entries) if entry not in free]
        if len(used) == self._room:
            return {}
        for number, layer in enumerate(self._layers):
            if layer is not None:
                self._layers[number] = layer.some(used)
        self._depth = [self._depth[entry] for entry in used]
        self._free = []
        self._room = len(used)
        self._allocated = 0
        self._moved()
        return {entry: place for place, entry in enumerate(used) if entry != place}

    def _stored_keys(self, key: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self._int8:
            return _without_prefix(key, self.prefix_tokens), None
        # A token's largest value becomes 127; a token of zeros stays one.
        scale = key.abs().amax(dim=-1).float() / 127
        rounded = (
            key.float() / scale.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
        ).round()
        return rounded.to(torch.int8), _without_prefix(scale, self.prefix_tokens)

    def _writable(self, layer: int) -> LayerReferences:
        held = self._layers[layer]
        if held is not None and held.key.shape[0] == self._room:
            return held
        kind, shape = self.kind, self._shapes[layer]
        key_dtype = torch.int8 if self._int8 else kind.projected_dtype
        grown = LayerReferences(
            key=self._grown(held.key if held else None, (shape.key,), key_dtype),
            value=self._grown(held.value if held else None, (shape.value,), kind.projected_dtype),
            delta=self._grown(held.delta if held else None, (kind.channels,), kind.dtype),
            scale=self._grown(held.scale if held else None, (), torch.float32)
            if self._int8
            else None,
        )
        self._layers[layer] = grown
        self._moved()
        return grown

    def _moved(self) -> None:
        self.generation = next(_GENERATIONS)
        self._uses.forget()

    def _tensors(self) -> Iterator[Tensor]:
        for layer in self._layers:
            if layer is not None:
                yield from layer.tensors()

    def _grown(self, held: Tensor | None, last: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        shape = (self._room, self.kind.tokens, *last)
        # A tensor made in inference mode could not be written outside it later.
        with torch.inference_mode(False):
            grown = torch.empty(shape, dtype=dtype, device=self.kind.device)
        if held is not None:
            grown[: held.shape[0]].copy_(held)
        return grown


def finite_frames(frames: Tensor) -> Tensor:
    """Tell of each frame, [F, ..], whether all its values are finite: bool [F]."""
    # Both extremes are NaN where any value is; one pass, and nothing that could overflow.
    least, greatest = torch.aminmax(frames.flatten(1), dim=1)
    return least.isfinite() & greatest.isfinite()


def _restored(key: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (key * scale[..., None]).to(dtype)


def _without_prefix(values: Tensor, prefix_tokens: int) -> Tensor:
    """Return values of each token, [R, T, ..], NaN for the prefix: never similar to anything."""
    if prefix_tokens == 0:
        return values
    hidden = values.clone()
    hidden[:, :prefix_tokens] = torch.nan
    return hidden
