"""Video-MME: four options about short, medium and long videos (arXiv 2405.21075)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from stc_stream.evaluate.tasks.letters import letter_of, strict_letter, with_letters
from stc_stream.evaluate.tasks.task import Fields, FileTask, Item, Task, entries

FILE = "videomme.json"
SOURCE = "https://huggingface.co/datasets/lmms-lab/Video-MME"

_PROMPT = """Select the best answer to the following multiple-choice question based on the video. \
Respond with only the letter (A, B, C, or D) of the correct option.
{question}
{options}
The best answer is:"""
_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)


def resembles(document: Any) -> bool:
    """Say whether a file's content may be its annotations."""
    first = document[0] if isinstance(document, list) and document else None
    if not isinstance(first, dict) or "video_id" not in first:
        return False
    return "questions" in first or {"question_id", "options"} <= first.keys()


def read(document: Any, path: Path, videos: Path | None, fps: float | None) -> Task:
    """Read its annotations: a question an entry, as the data set has them, or a video an entry.

    The data set's Parquet file is read by neither: `pandas.read_parquet(file).to_json(…,
    orient="records")` makes the first form of it. A video is `{videoID}.mp4` in `videos` beside the
    file, or `{video_id}.mp4` where an entry has no `videoID`.

    Raises:
        TaskError: an entry that lacks something, or whose answer isn't among its options.
    """
    items: list[Item] = []
    for entry in entries(document, "entry", path):
        if "questions" in entry:
            asked = entry.each("questions", "question")
            items += [_item(entry, question) for question in asked]
        else:
            items.append(_item(entry, entry))
    return VideoMme("Video-MME", items, videos or path.parent / "videos", fps, SOURCE)


class VideoMme(FileTask):
    """Video-MME: as published, the first of the letters A to D anywhere in a response counts."""

    notes = ("As published, the first of the letters A to D anywhere in a response counts.",)

    def right(self, item: Item, response: str) -> bool:
        for prefix in _PREFIXES:
            response = response.replace(prefix, "")
        found = re.search("[ABCD]", response)
        return found is not None and found[0] == item.answer

    def strictly_right(self, item: Item, response: str) -> bool:
        return strict_letter(response) == item.answer


def prompt(question: str, options: tuple[str, ...]) -> str:
    """Return how a question and its options are put to the model."""
    return _PROMPT.format(question=question, options="\n".join(with_letters(options)))


def _item(video: Fields, entry: Fields) -> Item:
    options = entry.texts("options")
    return Item(
        entry.text("question_id"),
        f"{video.text('videoID' if 'videoID' in video else 'video_id')}.mp4",
        prompt(entry.text("question"), options),
        letter_of(entry, entry.text("answer"), with_letters(options)),
        group=video.text("duration"),
    )
