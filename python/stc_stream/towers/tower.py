"""What is read from a vision tower, whatever its family."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import functional

Branch = Callable[[Tensor], Tensor]
"""A part of a layer that maps tokens to tokens: a module, or several chained."""


@dataclass(frozen=True, eq=False)
class Projection:
    """A linear projection of a layer, or some of the rows of one that is fused with others.

    Attributes:
        module: the linear module.
        part: which of `parts` equal runs of output rows it is.
        parts: how many projections the module holds side by side; 1: it is not fused.
    """

    module: nn.Linear
    part: int = 0
    parts: int = 1

    @property
    def in_features(self) -> int:
        """Channels of its input."""
        return self.module.in_features

    @property
    def out_features(self) -> int:
        """Channels of its output."""
        return self.module.out_features // self.parts

    @property
    def weight(self) -> Tensor:
        """Its weight, [out_features, in_features]; a view where it is fused."""
        return self._own(self.module.weight)

    @property
    def bias(self) -> Tensor | None:
        """Its bias, [out_features]; None: none."""
        bias: Tensor | None = self.module.bias
        return None if bias is None else self._own(bias)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Project tokens, [.., in_features] to [.., out_features]."""
        if self.parts == 1:
            projected: Tensor = self.module(tokens)
            return projected
        return functional.linear(tokens, self.weight, self.bias)

    def _own(self, rows: Tensor) -> Tensor:
        size = self.out_features
        return rows if self.parts == 1 else rows[self.part * size : (self.part + 1) * size]


@dataclass(frozen=True, eq=False)
class TowerLayer:
    """The parts of one pre-norm transformer layer: x + A(LN1 x), then h + MLP(LN2 h).

    Attributes:
        module: the layer, as the encoder calls it.
        attention: the attention branch's module, whose parts are called in its place.
        norm1, norm2: the norms before attention and before the MLP.
        query, key, value: the projections of the normed input.
        output: from the heads' joined output, [n, C], to what the attention branch adds: the
            output projection, and a layer scale after it where there is one.
        mlp: the MLP likewise, from [n, C] to [n, C].
        heads: number of attention heads.
        scale: factor on the attention logits.
        query_norm, key_norm: norm of projected queries and keys, [.., C] to [.., C]; None: none.
            Keys are compared with their reference before it.
        dropout: largest probability that anything in the layer drops out with in training mode.
        returns_tuple: whether the encoder expects `(output,)` of the layer.
    """

    module: nn.Module
    attention: nn.Module
    norm1: nn.Module
    query: Projection
    key: Projection
    value: Projection
    output: Branch
    norm2: nn.Module
    mlp: Branch
    heads: int
    scale: float
    query_norm: Branch | None = None
    key_norm: Branch | None = None
    dropout: float = 0.0
    returns_tuple: bool = False

    def unread(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield each module, with its name in an error, that is not called while cached."""
        yield "the module", self.module
        yield "the attention", self.attention
        if self.key.parts > 1:
            yield "the query, key and value projection", self.key.module

    @cached_property
    def takes(self) -> tuple[str, ...]:
        """Names of what the layer's own forward takes by position."""
        _, *parameters = inspect.signature(type(self.module).forward).parameters.values()
        return tuple(
            each.name
            for each in parameters
            if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        )

    def weights(self) -> Iterator[Tensor]:
        """Yield each weight of the layer, as it is now."""
        for holder, name in self._holders:
            weight = holder[name]
            if weight is not None:
                yield weight

    @cached_property
    def _holders(self) -> tuple[tuple[dict[str, nn.Parameter | None], str], ...]:
        return tuple(
            (module._parameters, name)
            for module in self.module.modules()
            for name in module._parameters
        )


@dataclass(frozen=True, eq=False)
class Entry:
    """A method of a module through which the layers are run.

    Attributes:
        module: the module.
        method: name of the method, "forward" or another.
    """

    module: nn.Module
    method: str = "forward"


@dataclass(frozen=True, eq=False)
class TowerSpec:
    """A vision tower inside a model.

    Attributes:
        family: name of the family that reads it.
        path: dotted path of the tower's module in the model; empty for the model itself.
        entries: where a forward begins: the methods that call the layers one after the other.
        layers: the layers, in the order they are called.
        embedding: the projection of patches, whose input is the pixels.
        prefix_tokens: tokens before the patches (class token, registers), always recomputed.
        packed: whether frames come as one sequence of tokens, [sum of T, C], told apart by
            `grid_thw`; else they come as [frames, T, C].
        windowed: whether some layers attend within windows of a frame.
    """

    family: str
    path: str
    entries: tuple[Entry, ...]
    layers: tuple[TowerLayer, ...]
    embedding: nn.Module
    prefix_tokens: int = 0
    packed: bool = False
    windowed: bool = False

    @property
    def encoder(self) -> nn.Module:
        """The module that calls the layers."""
        return self.entries[0].module

    @property
    def width(self) -> int:
        """Channels a token (C)."""
        return self.layers[0].key.in_features

    def next_norm(self, number: int) -> nn.Module | None:
        """Return LN1 of the layer after; None: there is none."""
        return self.layers[number + 1].norm1 if number + 1 < len(self.layers) else None


class Family(Protocol):
    """What reads the towers of a family: a module with these two functions, or an object."""

    def resembles(self, module: nn.Module) -> bool:
        """Say whether `module` itself, not one inside it, may be a tower of the family.

        True for no tower of another family; and where a part is missing, so that `read` names it.
        """

    def read(self, module: nn.Module, path: str) -> TowerSpec:
        """Read a tower that resembles the family's, found at `path` in the model.

        Raises:
            Unreadable: a part is missing, or there is one too many.
        """


class Unreadable(Exception):
    """A module that resembles a tower of a family lacks a part, or has one too many."""


def submodule(parent: nn.Module, path: str, kind: type[nn.Module] | None, where: str = "") -> Any:
    """Return the module at a dotted path.

    Args:
        parent: where the path starts.
        path: as in `model.encoder.layers`.
        kind: class that it must be an instance of; None: any module.
        where: what to add to an error, " in layer 3".

    Raises:
        Unreadable: there is none, or one of another kind.
    """
    found = _at(parent, path)
    wanted = nn.Module if kind is None else kind
    if not isinstance(found, wanted):
        what = path if kind is None else f"torch.nn.{kind.__name__} as {path}"
        raise Unreadable(f"has no {what}{where}{_instead(found)}")
    return found


def first_submodule(
    parent: nn.Module, paths: tuple[str, ...], kind: type[nn.Module] | None, where: str = ""
) -> Any:
    """Return the module at the first of several paths that leads to one, as `submodule` does."""
    for path in paths[:-1]:
        try:
            return submodule(parent, path, kind, where)
        except Unreadable:
            continue
    return submodule(parent, paths[-1], kind, where)


def optional_submodule(parent: nn.Module, name: str) -> nn.Module | None:
    """Return a child, or None where there is none or one that does nothing."""
    found = getattr(parent, name, None)
    return found if isinstance(found, nn.Module) and not isinstance(found, nn.Identity) else None


def setting(parent: object, name: str, kind: Callable[[Any], Any], where: str = "") -> Any:
    """Return an attribute that is no module, converted to `kind`.

    Raises:
        Unreadable: there is none.
    """
    return first_setting(parent, (name,), kind, where)


def first_setting(
    parent: object, names: tuple[str, ...], kind: Callable[[Any], Any], where: str = ""
) -> Any:
    """Return the first of several attributes that is there, as `setting` does."""
    for name in names:
        value = getattr(parent, name, None)
        if value is not None:
            return kind(value)
    raise Unreadable(f"has no {names[-1]}{where}")


def learned_tokens(parent: nn.Module, path: str, optional: bool = False) -> int:
    """Return how many tokens the parameter [1, n, C] at a dotted path puts before the patches.

    Raises:
        Unreadable: there is no such parameter, and it is not optional.
    """
    tokens = _at(parent, path)
    if isinstance(tokens, Tensor):
        return tokens.shape[1]
    if optional:
        return 0
    raise Unreadable(f"has no {path}")


def stack(
    module: nn.Module, path: str, read_layer: Callable[[nn.Module, str], TowerLayer]
) -> tuple[TowerLayer, ...]:
    """Read all layers in the list at a dotted path.

    Args:
        module: where the path starts.
        path: of a ModuleList or Sequential.
        read_layer: reads one, told where it is, " in layer 3", for its errors.

    Raises:
        Unreadable: there are none, or one lacks a part.
    """
    layers = list(submodule(module, path, None))
    if not layers:
        raise Unreadable(f"has no layers ({path} is empty)")
    return tuple(read_layer(layer, f" in layer {number}") for number, layer in enumerate(layers))


def reject_unread_weights(parent: nn.Module, known: Collection[str], where: str) -> None:
    """Refuse a module that has weights beside those that a family's layers have.

    What computes with them would be left out. Parts without weights (activations, dropout) are
    no matter.

    Raises:
        Unreadable: there are such weights.
    """
    if "_orig_mod" in parent._modules:
        kind = type(parent._modules["_orig_mod"]).__name__
        raise Unreadable(
            f"has a {kind}{where} that torch.compile has wrapped: attach the Cacher to the tower "
            "uncompiled, then compile the model around it, or the MLPs"
        )
    own = dict(parent.named_parameters(recurse=False))
    for name, child in parent.named_children():
        own.update((name, weight) for weight in child.parameters())
    for name in own:
        if name not in known:
            raise Unreadable(f"has weights that are not read: {name}{where}")


def chain(*modules: nn.Module | Branch | None) -> Branch:
    """Return what maps tokens through one module after the other; None and identities are left out.

    At least one must be there that does something.
    """
    links = [each for each in modules if each is not None and not isinstance(each, nn.Identity)]
    if len(links) == 1:
        return links[0]

    def run(tokens: Tensor) -> Tensor:
        for module in links:
            tokens = module(tokens)
        return tokens

    return run


def dropout(layer: nn.Module) -> float:
    """Return the largest probability that anything in `layer` drops out with in training mode."""
    found = [0.0]
    for module in layer.modules():
        if isinstance(module, nn.Dropout):
            found.append(module.p)
        for name in ("dropout", "attention_dropout", "dropout_prob", "drop_prob"):
            value = getattr(module, name, None)
            if isinstance(value, float | int):
                found.append(float(value))
    return max(found)


def returns_tuple(layer: nn.Module) -> bool:
    """Tell whether an encoder expects `(output,)` of a layer.

    Layers that take `output_attentions` return a tuple, with the attention map if it is wanted:
    so it was in transformers 4, and is in classes written for it.
    """
    return "output_attentions" in inspect.signature(layer.forward).parameters


def _instead(found: object) -> str:
    """Say what is in a part's place, and what to do about it."""
    if not isinstance(found, nn.Module):
        return ""
    if hasattr(found, "base_layer"):
        # As peft calls the module that an adapter wraps.
        return ", but an adapter around one: merge it first (peft: merge_and_unload())"
    return f", but a {type(found).__module__}.{type(found).__qualname__}"


def _at(parent: object, path: str) -> object:
    for name in path.split("."):
        parent = getattr(parent, name, None)
    return parent
