"""Methods by name: one file each, found by its file's name.

A file's `METHOD` is a frozen dataclass whose fields are the method's settings, each with a default.
It has what the method needs: `attach(tower)`, or an attribute `tower` with something that has;
attributes `pruner` and `memory`. `stc:update_ratio=0.1,refresh_interval=2` is the method of
`stc.py` with two of its settings.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, get_args

from stc_stream.evaluate.method import Method
from stc_stream.evaluate.settings import read_settings
from stc_stream.pruner import PrunerConfig
from stc_stream.pruner.config import Strategy

if TYPE_CHECKING:
    from stc_stream.session.memory import Memory

_PARTS = ("attach", "tower", "pruner", "memory")


def method_names() -> tuple[str, ...]:
    """Return the names of all methods, in order of the alphabet."""
    return tuple(sorted(found.name for found in pkgutil.iter_modules(__path__)))


def read_method(text: str, defaults: Mapping[str, Any] | None = None) -> Method:
    """Return a method that is written as its name, or `name:setting=value,setting=value`.

    A value that may be None is written `none`; a name's `_` may be written `-`.

    Args:
        text: the name, and the settings that differ from the defaults.
        defaults: settings for methods that have them, where the text says nothing.

    Raises:
        TypeError: a file that is no method.
        ValueError: no method of that name, no such setting, or a value that it can't have; one
            line that says what there is.
    """
    name, _, written = text.partition(":")
    name = name.replace("-", "_")
    if name not in method_names():
        raise ValueError(f"method must be one of {', '.join(method_names())}, but is {name!r}")
    settings = read_settings(f"method {name}", _kind(name), written, defaults)
    try:
        return _method(text, settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"method {name}: {error}") from None


def read_pruner(text: str, tokens_per_frame: int | None = None) -> PrunerConfig:
    """Return a pruner by the name of its strategy, or by that of a method with no other part.

    Args:
        text: "dual_anchor", "gaussian", or a method as `read_method` reads it.
        tokens_per_frame: how many are kept, where the text says nothing; None: a quarter.

    Raises:
        ValueError: another name; a setting as in `read_method`.
    """
    for strategy in get_args(Strategy):
        if text == strategy:
            return PrunerConfig.paper(tokens_per_frame, strategy=strategy)
    name = text.partition(":")[0].replace("-", "_")
    known = [each for each in method_names() if _prunes_alone(each)]
    if name not in known:
        names = ", ".join([*get_args(Strategy), *known])
        raise ValueError(f"pruner must be one of {names}, but is {name!r}")
    try:
        pruner = read_method(text, {"tokens_per_frame": tokens_per_frame}).pruner
    except ValueError as error:
        raise ValueError(str(error).replace("method", "pruner", 1)) from None
    assert pruner is not None
    return pruner


def _prunes_alone(name: str) -> bool:
    method = read_method(name)
    return method.pruner is not None and method.tower is None


def read_memory(text: str) -> Memory:
    """Return a memory: "full", or by the name of a method with no other part: `recent:frames=2`.

    Raises:
        ValueError: another name; a setting as in `read_method`.
    """
    from stc_stream.session.memory import FullMemory

    known = [name for name in method_names() if _remembers_alone(name)]
    name, _, written = text.partition(":")
    name = name.replace("-", "_")
    if name == "full":
        full: FullMemory = read_settings("memory full", FullMemory, written)
        return full
    if name not in known:
        raise ValueError(f"memory must be one of {', '.join(['full', *known])}, but is {name!r}")
    try:
        memory = read_method(text).memory
    except ValueError as error:
        raise ValueError(str(error).replace("method", "memory", 1)) from None
    assert memory is not None
    return memory


def _remembers_alone(name: str) -> bool:
    method = read_method(name)
    return method.memory is not None and (method.tower, method.pruner) == (None, None)


def split_methods(text: str) -> list[str]:
    """Return methods that are written with commas between them: `stc,skip:refresh_interval=2`.

    What is `setting=value` belongs to the method before it; `all` is every method that there is.
    """
    if text.strip() == "all":
        return list(method_names())
    found: list[str] = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        if found and "=" in part and ":" not in part:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def _kind(name: str) -> Any:
    """Return the class of a method's settings.

    Raises:
        TypeError: its file has none, or one with no part of a method; only `dense` has none.
    """
    kind = getattr(import_module(f"{__name__}.{name}"), "METHOD", None)
    if not isinstance(kind, type) or not is_dataclass(kind):
        raise TypeError(f"METHOD of {name}.py must be a dataclass, the class itself, but is {kind}")
    own = {*dir(kind), *(field.name for field in fields(kind))}
    if name != "dense" and not own.intersection(_PARTS):
        raise TypeError(
            f"{kind.__name__} of {name}.py must have {', '.join(_PARTS[:-1])} or {_PARTS[-1]}, "
            "but has none of them"
        )
    return kind


def _method(name: str, settings: Any) -> Method:
    tower = settings if hasattr(settings, "attach") else getattr(settings, "tower", None)
    parts = {part: getattr(settings, part, None) for part in ("pruner", "memory")}
    return Method(name, tower=tower, **parts)
