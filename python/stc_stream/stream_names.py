"""Names of streams: what may be one, and what stands for a stream that has none."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Hashable, Iterable
from reprlib import repr as shortened

DEFAULT_STREAM = "default"
"""The stream of everything, as long as no stream is named."""


def check_names(names: Iterable[Hashable]) -> None:
    """Refuse names that do not compare by value.

    A name that is equal to nothing but itself (a tensor, an object without `__eq__`, NaN) would be
    another stream each time that it is made. Tuples, frozen sets and dataclasses are looked into.

    Raises:
        TypeError: such a name, or one that is not hashable.
    """
    for name in names:
        try:
            hash(name)
        except TypeError:
            raise TypeError(
                f"streams must have hashable names, but one is {shortened(name)}"
            ) from None
        culprit = _identity(name)
        if culprit is not None:
            where = "" if culprit is name else f", with {shortened(culprit)} in it"
            raise TypeError(
                f"streams must have names that compare by value, but one is {shortened(name)}"
                f"{where}: a {type(culprit).__name__} that is equal to nothing but itself, so each "
                "frame would start another stream. Name it by a str or an int (of a tensor, "
                ".item() or .tolist())"
            )


def _identity(name: object) -> object | None:
    """Return what in a name compares by identity, not by value; None: nothing."""
    if name is None or isinstance(name, str | int | bytes | enum.Enum):
        return None
    # Tensors' own hash is their id; an object's, and NaN's, is made from it.
    if hash(name) in (id(name), object.__hash__(name)) or not _equals_itself(name):
        return name
    if type(name).__eq__ is object.__eq__:
        return name
    found = map(_identity, _parts(name))
    return next((culprit for culprit in found if culprit is not None), None)


def _equals_itself(name: object) -> bool:
    try:
        return bool(name == name)
    except (TypeError, ValueError, RuntimeError):
        return False


def _parts(name: object) -> Iterable[object]:
    """Return what a name is compared by, where it consists of parts."""
    if isinstance(name, tuple | frozenset):
        return name
    if not dataclasses.is_dataclass(name):
        return ()
    parts = tuple(
        getattr(name, field.name)
        for field in dataclasses.fields(name)
        if (field.compare if field.hash is None else field.hash)
    )
    try:
        return parts if hash(parts) == hash(name) else ()
    except TypeError:
        return ()
