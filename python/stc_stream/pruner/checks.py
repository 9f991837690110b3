"""Checks of settings: what a value is and may be."""

from __future__ import annotations

from numbers import Integral, Real


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse what is none of some words."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, but is {value!r}")


def check_number(name: str, value: object) -> None:
    """Refuse what is not a real number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, but is {value!r}")


def check_share(name: str, value: float) -> None:
    """Refuse what is not in (0, 1]."""
    check_number(name, value)
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be in (0, 1], but is {value}")


def check_count(name: str, value: int | None) -> None:
    """Refuse what is neither None nor an int of at least 1."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, but is {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, but is {value}")
