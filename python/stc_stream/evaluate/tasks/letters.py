"""Options with letters: how they are written, and which one an answer names."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from stc_stream.evaluate.tasks.task import Fields

LETTERS = string.ascii_uppercase

_ALONE = re.compile(r"\(?([A-Z])\)?[.:]?|\(?([A-Z])[.:)]\s.*", re.DOTALL)
_LETTERED = re.compile(r"\(?([A-Z])[.):]\s*")


def with_letters(options: Sequence[str]) -> tuple[str, ...]:
    """Return options that begin with their letters, "A. …"; those that do are left as they are."""
    found = [_LETTERED.match(option) for option in options]
    if all(each and each[1] == LETTERS[place] for place, each in enumerate(found)):
        return tuple(options)
    return tuple(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def letter_of(entry: Fields, answer: str, options: Sequence[str]) -> str:
    """Return the letter of the right option, which is given as its letter or as its text.

    Raises:
        TaskError: it is none of them.
    """
    letters = LETTERS[: len(options)]
    found = _ALONE.fullmatch(answer.strip())
    if answer in options:
        return letters[list(options).index(answer)]
    if found and (found[1] or found[2]) in letters:
        return str(found[1] or found[2])
    raise entry.error(f"answer must be one of {', '.join(letters)}, but is {answer!r}")


def strict_letter(response: str) -> str | None:
    """Return the letter that a response is: alone, or before its option's text; None: it is none.

    "A", "(A)", "A." and "A. a cup" are A; "Answer: A" and "A cup" are none.
    """
    found = _ALONE.fullmatch(response.strip())
    return None if found is None else found[1] or found[2]
