"""EgoSchema: five options about three minutes of everyday life (arXiv 2308.09126)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stc_stream.evaluate.tasks.letters import LETTERS, strict_letter, with_letters
from stc_stream.evaluate.tasks.task import (
    Fields,
    FileTask,
    Item,
    Task,
    TaskError,
    entries,
    read_json,
)

FILE = "questions.json"
SOURCE = "https://github.com/egoschema/EgoSchema"

_ANSWERS = "subset_answers.json"
_PROMPT = """Select the best answer to the following multiple-choice question based on the video. \
Respond with only the letter (A, B, C, D, or E) of the correct option.
{question}
{options}
The best answer is:"""


def resembles(document: Any) -> bool:
    """Say whether a file's content may be its questions."""
    first = document[0] if isinstance(document, list) and document else None
    return isinstance(first, dict) and {"q_uid", "question", "option 0"} <= first.keys()


def read(document: Any, path: Path, videos: Path | None, fps: float | None) -> Task:
    """Read its questions, and of the 500 whose answers are published, `subset_answers.json`.

    The other answers are known to the benchmark's server alone: those questions are left out. A
    video is `{q_uid}.mp4` in `videos` beside the file.

    Raises:
        TaskError: an entry that lacks something, an answer that isn't among the options, no file of
            answers, or one with no answer to these questions.
    """
    beside = path.parent / _ANSWERS
    answers = read_json(beside, "EgoSchema", SOURCE)
    if not isinstance(answers, dict):
        raise TaskError(f"{beside} must hold an object of answers, but does not")
    found = entries(document, "question", path)
    items = [_item(entry, answers) for entry in found if entry.text("q_uid") in answers]
    if not items:
        raise TaskError(f"{beside} has no answer to any question of {path}: get both anew")
    return _EgoSchema(items, len(found) - len(items), videos or path.parent / "videos", fps)


class _EgoSchema(FileTask):
    def __init__(self, items: list[Item], left_out: int, folder: Path, fps: float | None) -> None:
        super().__init__("EgoSchema", items, folder, fps, SOURCE)
        if left_out:
            self.notes = (
                f"{left_out} questions are left out, whose answers are not published: they are "
                "scored by the benchmark's server.",
            )

    def right(self, item: Item, response: str) -> bool:
        return response.strip()[:1] == item.answer

    def strictly_right(self, item: Item, response: str) -> bool:
        return strict_letter(response) == item.answer


def _item(entry: Fields, answers: dict[str, Any]) -> Item:
    name = entry.text("q_uid")
    options = tuple(entry.text(f"option {number}") for number in range(5))
    right = answers[name]
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < 5:
        raise entry.error(f"answer must be in 0..4, of its five options, but is {right!r}")
    text = _PROMPT.format(question=entry.text("question"), options="\n".join(with_letters(options)))
    return Item(name, f"{name}.mp4", text, LETTERS[right])
