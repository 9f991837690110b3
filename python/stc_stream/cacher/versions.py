"""When a graph of a tower is no longer of use, and who takes what its inner layers give."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from stc_stream.towers import TowerSpec

_MOST = 64
_PLAIN = {Tensor, nn.Parameter}
_DATA_PTR: Callable[[Any], int] = Tensor.data_ptr
_CAPTURING = "transformers.utils.output_capturing"


class TowerVersions:
    """Numbers the states of a tower that its graphs depend on.

    Args:
        tower: the tower, with what a Cacher has put in the place of its layers' forwards.
    """

    def __init__(self, tower: TowerSpec) -> None:
        layers = [layer.module for layer in tower.layers]
        self._parameters = [each._parameters for layer in layers for each in layer.modules()]
        self._hooks = [each for x in layers for each in (x._forward_pre_hooks, x._forward_hooks)]
        self._layers = [layer.__dict__ for layer in layers]
        self._forwards = [held.get("forward") for held in self._layers]
        self._takers: set[Hashable] = set()
        self._numbers: dict[Hashable, int] = {}
        self._next = itertools.count()
        self._places: list[int] = []
        self._plain = False
        self._hooked: list[int] = []
        self._number = -1
        self._nothing: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def current(self) -> int:
        """Return another number whenever a weight is elsewhere in memory, or layers have new hooks.

        Weights that were there before have the number that they had.
        """
        places, hooked = self._weight_places(), [*itertools.chain.from_iterable(self._hooks)]
        if self._number < 0 or places != self._places or hooked != self._hooked:
            if len(self._numbers) >= _MOST:
                self._numbers.clear()
            self._places, self._hooked = places, hooked
            state = (tuple(places), tuple(hooked))
            self._number = self._numbers.setdefault(state, next(self._next))
        return self._number

    def takes_inner(self, way: Hashable) -> bool:
        """Tell whether somebody takes what inner layers give in a tower called in this way."""
        if way in self._takers or hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
            return True
        # transformers 5.0 puts forwards of its own around those of layers.
        if [held.get("forward") for held in self._layers] != self._forwards:
            return True
        return any(_wants(hook) for held in self._hooks if held for hook in held.values())

    def nothing_like(self, output: Tensor) -> Tensor:
        """Return NaN in the shape of an output, a new view of one number."""
        kind = (output.dtype, output.device)
        if kind not in self._nothing:
            # What is made in inference mode could not be handed out outside it.
            with torch.inference_mode(False):
                self._nothing[kind] = torch.full(
                    (), torch.nan, dtype=output.dtype, device=output.device
                )
        return self._nothing[kind].expand(output.shape)

    def _weight_places(self) -> list[int]:
        """Return what a graph finds each weight by."""
        weights = itertools.chain.from_iterable(map(dict.values, self._parameters))
        if self._plain:
            try:
                # A loop in C, over hundreds of weights a batch.
                places = [*map(_DATA_PTR, weights)]
            except (TypeError, RuntimeError):
                places = []
            if places == self._places:
                return places
        weights = itertools.chain.from_iterable(map(dict.values, self._parameters))
        held = [*weights]
        self._plain = set(map(type, held)) <= _PLAIN
        # One of another class has no place of its own, and one that is not there none.
        return [x.data_ptr() if x is not None and type(x) in _PLAIN else id(x) for x in held]

    def note_taker(self, way: Hashable) -> None:
        """Remember that a tower called in this way has what its inner layers give taken."""
        self._takers.add(way)


def way_of(
    tower: TowerSpec, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Hashable:
    """Return how a tower is called: all that may decide who takes what its layers give.

    Args:
        tower: the tower.
        method: the tower's own, that is called.
        args, kwargs: what it is called with; of tensors, only that they are some.
    """
    configs = (getattr(entry.module, "config", None) for entry in tower.entries)
    return (
        method,
        tuple(map(_told, args)),
        tuple((name, _told(value)) for name, value in kwargs.items()),
        tuple(getattr(config, "output_hidden_states", None) for config in configs),
    )


def _told(value: Any) -> Hashable:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return tuple(map(_told, value))
    return type(value).__qualname__


def _wants(hook: Callable[..., Any]) -> bool:
    """Tell whether a layer's hook looks at what the layer gives.

    transformers' own stay on the layers once hidden states were asked for, and look only then.
    """
    if getattr(hook, "__module__", None) != _CAPTURING:
        return True
    collector = getattr(sys.modules.get(_CAPTURING), "_active_collector", None)
    return collector is None or bool(collector.get())
