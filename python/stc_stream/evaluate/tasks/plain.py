"""A task file of one's own: a JSON list of questions, or one a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stc_stream.evaluate.tasks.letters import LETTERS, letter_of
from stc_stream.evaluate.tasks.task import Fields, FileTask, Item, Task, entries


def resembles(document: Any) -> bool:
    """Say whether a file's content may be one."""
    return isinstance(document, list) and bool(document)


def read(document: Any, path: Path, videos: Path | None, fps: float | None) -> Task:
    """Read a file of questions.

    Each has `video` (a path from the file's folder), `question` and `answer`; and may have
    `choices`, among which the model then chooses by their likelihood (`answer` is one of them, or
    the letter of one), `time` (seconds after which it is asked; else at the end), `group` and `id`.
    Without choices the model writes its answer, which must be the right one up to case and what
    ends a sentence.

    Raises:
        TaskError: a question that lacks something, or an answer that isn't among its choices.
    """
    found = [
        _item(entry, number) for number, entry in enumerate(entries(document, "question", path))
    ]
    return _Plain(path.stem, found, videos or path.parent, fps)


class _Plain(FileTask):
    def right(self, item: Item, response: str) -> bool:
        return _bare(response) == _bare(item.answer)


def _bare(text: str) -> str:
    return text.strip().rstrip(".!").strip().casefold()


def _item(entry: Fields, number: int) -> Item:
    answer = entry.text("answer")
    choices: tuple[str, ...] = ()
    if "choices" in entry:
        choices = entry.texts("choices")
        if answer not in choices:
            answer = choices[LETTERS.index(letter_of(entry, answer, choices))]
    return Item(
        entry.text("id") if "id" in entry else str(number + 1),
        entry.text("video"),
        entry.text("question"),
        answer,
        choices,
        entry.number("time") if "time" in entry else None,
        entry.text("group") if "group" in entry else "",
    )
