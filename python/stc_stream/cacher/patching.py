"""What a Cacher puts in the place of a tower's methods, on this instance alone, and takes away."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from stc_stream.cacher.modality import Modality, ModelPath
from stc_stream.cacher.refusals import Attached
from stc_stream.towers import Entry, TowerSpec


class Patches:
    """A tower whose entries and layers are run by a Cacher, until `undo`.

    Args:
        tower: the tower.
        paths: methods of the whole model that give rows to the tower, and what they say of them.
        encode: (an entry's own method, its signature, args, kwargs) → what the entry returns.
        run_layer: (number, *args, **kwargs) → what the layer returns.
        enter: (modality, videos in the call) → what a path's method is run in.

    Attributes:
        layers_densely: each layer's own forward.

    Raises:
        ValueError: the tower has a Cacher. TypeError: a layer in several places, or one that
            computes something else than its weights say.
    """

    def __init__(
        self,
        tower: TowerSpec,
        paths: Sequence[tuple[Entry, Modality]],
        encode: Callable[..., Any],
        run_layer: Callable[..., Any],
        enter: Callable[[Modality, int], AbstractContextManager[None]],
    ) -> None:
        if any(isinstance(_method(entry), _Entered) for entry in tower.entries):
            raise ValueError("the tower has a Cacher already: detach that one first")
        _refuse_repeated_layers(tower)
        _refuse_changed_layers(tower)
        self.layers_densely = [layer.module.forward for layer in tower.layers]
        self._patches = [
            *(_Patch(each.module, each.method, _Entered(encode, each)) for each in tower.entries),
            *(
                _Patch(layer.module, "forward", Attached(partial(run_layer, number)))
                for number, layer in enumerate(tower.layers)
            ),
            *(
                _Patch(path.module, path.method, ModelPath(_method(path), modality, enter))
                for path, modality in paths
            ),
        ]
        for patch in self._patches:
            patch.apply()

    def undo(self) -> None:
        """Give the tower back as it was.

        Raises:
            RuntimeError: something else has replaced what was put in place; nothing is undone.
        """
        for patch in self._patches:
            if not patch.in_place:
                raise RuntimeError(
                    f"the {patch.method} of {type(patch.module).__name__} was replaced after "
                    "the Cacher was attached: undo that first, then detach"
                )
        for patch in self._patches:
            patch.undo()


class _Patch:
    """A method put in the place of a module's own, on this instance alone."""

    def __init__(self, module: nn.Module, method: str, replacement: Callable[..., Any]) -> None:
        self.module = module
        self.method = method
        self.replacement = replacement
        self._before = module.__dict__.get(method)

    def apply(self) -> None:
        """Put it in place."""
        setattr(self.module, self.method, self.replacement)

    @property
    def in_place(self) -> bool:
        """Whether the instance still has it."""
        found = self.module.__dict__.get(self.method)
        # transformers 5.0 forgets what it wraps around a layer when a forward fails.
        while found is not self.replacement and _is_from_transformers(found):
            found = getattr(found, "__wrapped__", None)
        return found is self.replacement

    def undo(self) -> None:
        """Take it away; the instance has again what it had of its own."""
        if self._before is None:
            delattr(self.module, self.method)
        else:
            setattr(self.module, self.method, self._before)


class _Entered(Attached):
    """An entry of the tower while a Cacher is attached."""

    def __init__(self, encode: Callable[..., Any], entry: Entry) -> None:
        densely = _method(entry)
        signature = inspect.signature(densely)

        def run(*args: Any, **kwargs: Any) -> Any:
            return encode(densely, signature, args, kwargs)

        super().__init__(run)


def _refuse_repeated_layers(tower: TowerSpec) -> None:
    places: dict[nn.Module, list[int]] = {}
    for number, layer in enumerate(tower.layers):
        places.setdefault(layer.module, []).append(number)
    for numbers in places.values():
        if len(numbers) > 1:
            raise TypeError(
                f"layers {', '.join(map(str, numbers))} of the tower are one module, whose "
                "calls a Cacher can't tell apart: give each place a copy of its own "
                "(copy.deepcopy)"
            )


def _refuse_changed_layers(tower: TowerSpec) -> None:
    for number, layer in enumerate(tower.layers):
        for name, module in layer.unread():
            change = _change(module)
            if change is not None:
                raise TypeError(
                    f"{name} of the tower's layer {number} has {change}, which a Cacher would "
                    "bypass: merge or remove it first"
                )


def _is_from_transformers(function: object) -> bool:
    written_in = getattr(function, "__globals__", {}).get("__name__", "")
    return str(written_in).partition(".")[0] == "transformers"


def _method(entry: Entry) -> Callable[..., Any]:
    method: Callable[..., Any] = getattr(entry.module, entry.method)
    return method


def _change(module: nn.Module) -> str | None:
    """Say what makes a module compute something else than its weights say; None: nothing."""
    own = module.__dict__.get("forward")
    # transformers 5.0 leaves a module's own method there after collecting hidden states.
    if own is not None and own != MethodType(type(module).forward, module):
        return "a forward of its own, put there by another patch (accelerate's offloading, say)"
    if isinstance(module, nn.Linear):
        if type(module).forward is not nn.Linear.forward:
            return f"a forward of its own, {type(module).__name__}'s (an adapter's, say)"
        if module._forward_hooks or module._forward_pre_hooks:
            return "forward hooks"
        if not _computes_in_parts(module):
            return f"a weight of class {type(module.weight).__name__} that can't be cut into rows"
    return None


def _computes_in_parts(module: nn.Linear) -> bool:
    """Tell whether some rows of a weight, which may be quantized, can be computed with."""
    weight = module.weight
    if type(weight) in (Tensor, nn.Parameter):
        return True
    tokens = torch.zeros(1, module.in_features, dtype=weight.dtype, device=weight.device)
    try:
        with torch.no_grad():
            nn.functional.linear(tokens, weight[: module.out_features // 3])
    except Exception:
        # Each class of tensors raises its own error for what it does not know.
        return False
    return True
