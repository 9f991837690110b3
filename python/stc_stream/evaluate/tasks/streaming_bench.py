"""StreamingBench: questions at moments of a stream (arXiv 2411.03628)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from stc_stream.evaluate.tasks.letters import letter_of, strict_letter, with_letters
from stc_stream.evaluate.tasks.task import Fields, FileTask, Item, Task, TaskError, entries

FILE = "questions_real.json"
SOURCE = "https://huggingface.co/datasets/mjuicem/StreamingBench"

_PROMPT = """You are an advanced video question-answering AI assistant. You have been provided \
with some frames from the video and a multiple-choice question related to the video. Your task is \
to carefully analyze the video and provide the best answer to question, choosing from the four \
options provided. Respond with only the letter (A, B, C, or D) of the correct option.

Question: {question}

Options:
{options}

The best option is:"""
_SQA = """You are an advanced video question-answering AI assistant. You have been provided with a \
video and a multiple-choice question related to the video. Your task is to carefully analyze the \
video and the provided context to answer the question, choosing from the four options provided. \
Respond with only the letter (A, B, C, or D) of the correct option.

{context}
Here is the question. Answer it and don't confuse it with the previous conversation.

Question: {question}

Options:
{options}

The best option is:"""
_CONTEXT = (
    "Here are the contextual information related to the video. Please answer the questions based "
    "on the contextual information: "
)
_BEFORE = (
    "At timestamp {time}, the following question and answer occurred: Question: {question}; "
    "Options: {options}; Answer: {answer}; "
)


def resembles(document: Any) -> bool:
    """Say whether a file's content may be its annotations."""
    first = document[0] if isinstance(document, list) and document else None
    if isinstance(first, list):
        # Sequential questions come in lists of videos.
        return resembles(first)
    return isinstance(first, dict) and {"video_path", "questions"} <= first.keys()


def read(document: Any, path: Path, videos: Path | None, fps: float | None) -> Task:
    """Read its annotations, as published: `questions_real.json`, `questions_sqa.json`.

    In the latter the gold answers of earlier questions are part of a question. Questions see their
    video up to their moment, from its beginning. A video is sought at its `video_path` from the
    file's folder.

    Raises:
        TaskError: an entry that lacks something, or whose answer isn't among its options; the
            proactive part, which is polled each second and is not read yet, and the omni part,
            which needs the sound.
    """
    for kind, why in (
        ("omni", "needs the sound of its videos, which sessions don't take"),
        ("proactive", "is polled each second for whether to speak, which is not built here"),
    ):
        if kind in path.stem:
            raise TaskError(f"{path} {why}: give questions_real.json or questions_sqa.json")
    sequential = isinstance(document, list) and document and isinstance(document[0], list)
    if sequential:
        if not all(isinstance(each, list) for each in document):
            raise TaskError(f"{path} must hold lists of videos alone, but holds something else")
        document = [video for several in document for video in several]
    items: list[Item] = []
    for number, video in enumerate(entries(document, "video", path), 1):
        items += _items(video, number, bool(sequential))
    name = "StreamingBench" + (" (SQA)" if sequential else "")
    return _StreamingBench(name, items, videos or path.parent, fps, SOURCE)


class _StreamingBench(FileTask):
    notes = ("As published, the first character of a response is its answer.",)

    def right(self, item: Item, response: str) -> bool:
        return response.strip()[:1] == item.answer

    def strictly_right(self, item: Item, response: str) -> bool:
        return strict_letter(response) == item.answer


def _items(video: Fields, number: int, sequential: bool) -> list[Item]:
    found: list[Item] = []
    context = ""
    for place, entry in enumerate(video.each("questions", "question"), 1):
        options = with_letters(entry.texts("options"))
        answer = letter_of(entry, entry.text("answer"), options)
        question = entry.text("question")
        prompt = _SQA if sequential and context else _PROMPT
        text = prompt.format(
            question=question, options="\n".join(options), context=_CONTEXT + context
        )
        written = entry.text("time_stamp")
        found.append(
            Item(
                f"{number}/{place}",
                video.text("video_path"),
                text,
                answer,
                time=_seconds(entry, written),
                group=entry.text("task_type"),
            )
        )
        context += _BEFORE.format(
            time=written, question=question, options=", ".join(options), answer=answer
        )
    return found


def _seconds(entry: Fields, text: str) -> float:
    if not re.fullmatch(r"(\d+:)?\d{1,2}:\d{2}", text.strip()):
        raise entry.error(f"time_stamp must be HH:MM:SS, but is {text!r}")
    seconds = 0
    for part in text.split(":"):
        seconds = 60 * seconds + int(part)
    return float(seconds)
