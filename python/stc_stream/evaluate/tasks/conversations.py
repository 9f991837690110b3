"""ReKV's form of several benchmarks: a video an entry, with its questions (arXiv 2503.00540)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stc_stream.evaluate.tasks.letters import letter_of, strict_letter, with_letters
from stc_stream.evaluate.tasks.task import Fields, FileTask, Item, Task, entries
from stc_stream.evaluate.tasks.video_mme import prompt

SOURCE = "https://github.com/Becomebright/ReKV"


def resembles(document: Any) -> bool:
    """Say whether a file's content is of this form."""
    first = document[0] if isinstance(document, list) and document else None
    return isinstance(first, dict) and {"video_path", "conversations"} <= first.keys()


def read(document: Any, path: Path, videos: Path | None, fps: float | None) -> Task:
    """Read a file of this form: Video-MME, MLVU, EgoSchema or QAEgo4D as ReKV converts them.

    An answer is the text of a choice, or its letter. A video is sought at its `video_path` from the
    file's folder, or by its file's name in `videos`.

    Raises:
        TaskError: an entry that lacks something, or whose answer isn't among its choices.
    """
    items: list[Item] = []
    for entry in entries(document, "video", path):
        asked = entry.each("conversations", "question")
        items += [_item(entry, question, place) for place, question in enumerate(asked, 1)]
    if videos is not None:
        items = [_by_name(item) for item in items]
    return _Conversations(path.stem, items, videos or path.parent, fps)


class _Conversations(FileTask):
    def right(self, item: Item, response: str) -> bool:
        return response.strip()[:1] == item.answer

    def strictly_right(self, item: Item, response: str) -> bool:
        return strict_letter(response) == item.answer


def _item(video: Fields, entry: Fields, place: int) -> Item:
    choices = entry.texts("choices")
    answer = entry.text("answer")
    lettered = with_letters(choices)
    if answer in choices:
        answer = lettered[choices.index(answer)]
    return Item(
        f"{video.text('video_id')}/{place}",
        video.text("video_path"),
        prompt(entry.text("question"), choices),
        letter_of(entry, answer, lettered),
        group=entry.text("question_type") if "question_type" in entry else "",
    )


def _by_name(item: Item) -> Item:
    return Item(item.name, Path(item.video).name, item.text, item.answer, group=item.group)
