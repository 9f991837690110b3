"""MLVU: seven multiple-choice tasks about long videos (arXiv 2406.04264)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stc_stream.evaluate.tasks.letters import LETTERS, strict_letter
from stc_stream.evaluate.tasks.task import (
    Fields,
    FileTask,
    Item,
    Shares,
    Task,
    entries,
    means_of_means,
)

FILE = "json"
SOURCE = "https://huggingface.co/datasets/MLVU/MVLU"

_FOLDERS = {
    "plotQA": "1_plotQA",
    "needle": "2_needle",
    "findNeedle": "2_needle",
    "ego": "3_ego",
    "count": "4_count",
    "order": "5_order",
    "anomaly_reco": "6_anomaly_reco",
    "topic_reasoning": "7_topic_reasoning",
}
_PROMPT = """Carefully watch this video and pay attention to every detail. Based on your \
observations, select the best option that accurately addresses the question.
Question: {question}
Options:
{options}
Only give the best option.
Best Option: ("""


def resembles(document: Any) -> bool:
    """Say whether a file's content may be annotations of one of its tasks."""
    first = document[0] if isinstance(document, list) and document else None
    return isinstance(first, dict) and {"video", "question_type", "candidates"} <= first.keys()


def read(document: Any, path: Path, videos: Path | None, fps: float | None) -> Task:
    """Read the annotations of its multiple-choice tasks, of one file or of several together.

    A video is in the folder of its task, `video/1_plotQA/…`, beside the folder `json` of the files.

    Raises:
        TaskError: an entry that lacks something, or whose answer isn't among its candidates.
    """
    folder = path.parent if path.is_file() else path
    items = [
        _item(entry, number) for number, entry in enumerate(entries(document, "question", path), 1)
    ]
    return _Mlvu("MLVU", items, videos or folder.parent / "video", fps, SOURCE)


class _Mlvu(FileTask):
    notes = (
        "The total is the mean of its tasks (M-Avg).",
        "As published, a response is right whose first word is part of the right option's letter "
        "in brackets, or holds it.",
    )

    def right(self, item: Item, response: str) -> bool:
        # The prompt ends in an open bracket.
        first = response.strip().lower().split(" ")[0].replace(".", "")
        wanted = f"({item.answer.lower()})"
        return bool(first) and (first in wanted or wanted in first)

    def strictly_right(self, item: Item, response: str) -> bool:
        return strict_letter(response) == item.answer

    def mean(self, right: Shares, asked: Shares) -> Shares:
        return means_of_means(right, asked, [range(len(self.groups))])


def _item(entry: Fields, number: int) -> Item:
    kind, candidates = entry.text("question_type"), entry.texts("candidates")
    answer = entry.text("answer")
    if answer not in candidates:
        raise entry.error(f"answer must be one of its candidates, but is {answer!r}")
    options = "\n".join(
        f"({letter}) {option}" for letter, option in zip(LETTERS, candidates, strict=False)
    )
    return Item(
        str(number),
        f"{_FOLDERS.get(kind, kind)}/{entry.text('video')}",
        _PROMPT.format(question=entry.text("question"), options=options),
        LETTERS[candidates.index(answer)],
        group=kind,
    )
