"""OVO-Bench: what was, what is, and whether it is time to answer (arXiv 2501.05510)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from stc_stream.evaluate.tasks.letters import LETTERS, strict_letter, with_letters
from stc_stream.evaluate.tasks.task import (
    Fields,
    FileTask,
    Item,
    Shares,
    Task,
    entries,
    means_of_means,
)

FILE = "ovo_bench_new.json"
SOURCE = "https://github.com/JoeLeelyf/OVO-Bench"

_CATEGORIES = {
    "backward": ("EPM", "ASI", "HLD"),
    "realtime": ("STU", "OJR", "ATR", "ACR", "OCR", "FPD"),
    "forward": ("REC", "SSR", "CRR"),
}
_TASKS = tuple(task for tasks in _CATEGORIES.values() for task in tasks)
_CLIPS = "chunked_videos"

_CHOICE = """Question: {question}
Options:
{options};
Respond only with the letter corresponding to your chosen option (e.g., A, B, C).
Do not include any additional text or explanation in your response."""
_REC = """You're watching a video in which people may perform a certain type of action repetively.
The person performing this kind of action are referred to as 'they' in the following statement.
You're task is to count how many times have different people in the video perform this kind of \
action in total.
One complete motion counts as one.
Now, answer the following question: How many times did they {activity}?
Provide your answer as a single number (e.g., 0, 1, 2, 3…) indicating the total count.
Do not include any additional text or explanation in your response."""
_SSR = """You're watching a tutorial video which contain a sequential of steps.
The following is one step from the whole procedures:
{step}
Your task is to determine if the man or woman in the video is currently performing this step.
Answer only with “Yes” or “No”.
Do not include any additional text or explanation in your response."""
_CRR = """You're responsible of answering questions based on the video content.
The following question are relevant to the latest frames, i.e. the end of the video.
{question}
Decide whether existing visual content, especially latest frames, i.e. frames that near the end of \
the video, provide enough information for answering the question.
Answer only with “Yes” or “No”.
Do not include any additional text or explanation in your response."""


def resembles(document: Any) -> bool:
    """Say whether a file's content may be its annotations."""
    first = document[0] if isinstance(document, list) and document else None
    return isinstance(first, dict) and first.get("task") in _TASKS and "id" in first


def read(document: Any, path: Path, videos: Path | None, fps: float | None) -> Task:
    """Read its annotations, as published.

    Videos are the published clips, each cut at its question's moment: `{id}.mp4`, of the forward
    tasks `{id}_{i}.mp4`, in the folder `chunked_videos` beside the file; so every question is asked
    at the end.

    Raises:
        TaskError: an entry that lacks something, or whose answer isn't among its options.
    """
    items: list[Item] = []
    for entry in entries(document, "question", path):
        items += _items(entry)
    return _OvoBench("OVO-Bench", items, videos or path.parent / _CLIPS, fps, SOURCE)


class _OvoBench(FileTask):
    notes = (
        "The total is the mean of its three categories, each the mean of its tasks; figures that "
        "leave the forward category out are not comparable.",
        "As published, a response is right that holds the right letter anywhere.",
    )

    def right(self, item: Item, response: str) -> bool:
        if item.group == "REC":
            return "".join(re.findall(r"\d+", response)) == item.answer
        if item.group in ("SSR", "CRR") and response in ("Y", "N"):
            return response == item.answer[0]
        return item.answer in response

    def strictly_right(self, item: Item, response: str) -> bool:
        if item.group in _CATEGORIES["forward"]:
            return response.strip().rstrip(".").casefold() == item.answer.casefold()
        return strict_letter(response) == item.answer

    def mean(self, right: Shares, asked: Shares) -> Shares:
        places = {group: place for place, group in enumerate(self.groups)}
        tasks = _CATEGORIES.values()
        known = [[places[task] for task in each if task in places] for each in tasks]
        return means_of_means(right, asked, [places for places in known if places])


def _items(entry: Fields) -> list[Item]:
    number, task = entry.text("id"), entry.text("task")
    if task not in _TASKS:
        raise entry.error(f"task must be one of {', '.join(_TASKS)}, but is {task!r}")
    if task not in _CATEGORIES["forward"]:
        options = entry.texts("options")
        right = entry.count("gt")
        if right >= len(options):
            raise entry.error(
                f"gt must be in 0..{len(options) - 1}, one of its options, but is {right}"
            )
        text = _CHOICE.format(
            question=entry.text("question"), options="; ".join(with_letters(options))
        )
        return [Item(number, f"{number}.mp4", text, LETTERS[right], group=task)]
    found = []
    for place, moment in enumerate(entry.each("test_info", "moment")):
        if task == "REC":
            text, answer = _REC.format(activity=entry.text("activity")), str(moment.count("count"))
        else:
            text = (
                _SSR.format(step=moment.text("step"))
                if task == "SSR"
                else _CRR.format(question=entry.text("question"))
            )
            answer = "Yes" if moment.count("type") else "No"
        found.append(Item(f"{number}_{place}", f"{number}_{place}.mp4", text, answer, group=task))
    return found
