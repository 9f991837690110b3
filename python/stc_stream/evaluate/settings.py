"""Settings as they are written behind a name: `name:setting=value,setting=value`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def read_settings(
    what: str, kind: Any, written: str, defaults: Mapping[str, Any] | None = None
) -> Any:
    """Return an object of a dataclass with the settings that are written.

    Args:
        what: what errors call it, "method skip".
        kind: the dataclass; a field's type is a word, a number, bool, one of several words, or one
            of these or None, which is written `none`.
        written: `setting=value,setting=value`, or nothing.
        defaults: of settings that it may have, where nothing is written.

    Raises:
        ValueError: no such setting, or a value that it can't have; one line that says what there
            is.
    """
    types = get_type_hints(kind)
    known = [field.name for field in fields(kind) if field.init]
    settings: dict[str, Any] = {}
    for part in filter(None, written.split(",")):
        setting, equals, value = (each.strip() for each in part.partition("="))
        if not equals:
            raise ValueError(f"{what}: settings must be setting=value, but one is {part!r}")
        if setting not in known:
            if not known:
                raise ValueError(f"{what} has no settings, but {setting!r} was given")
            raise ValueError(f"{what} has {', '.join(known)}, but no {setting!r}")
        if setting in settings:
            raise ValueError(f"{what} has {setting} twice")
        settings[setting] = _value(what, setting, value, types[setting])
    own = {name: value for name, value in (defaults or {}).items() if name in known}
    try:
        return kind(**(own | settings))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: {error}") from None


def _value(what: str, setting: str, text: str, kind: Any) -> Any:
    choices = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for choice in choices:
        try:
            return _read(text, choice)
        except ValueError:
            continue
    words = " or ".join(map(_words, choices))
    raise ValueError(f"{what}: {setting} must be {words}, but is {text!r}")


def _read(text: str, kind: Any) -> Any:
    if kind is NoneType:
        options: dict[str, Any] = {"none": None}
    elif kind is bool:
        options = {"true": True, "false": False}
    elif get_origin(kind) is Literal:
        options = {str(each): each for each in get_args(kind)}
    else:
        return kind(text)
    if text not in options:
        raise ValueError(text)
    return options[text]


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    names = {NoneType: "none", bool: "true or false", int: "a whole number", float: "a number"}
    return names.get(kind, "a word")
