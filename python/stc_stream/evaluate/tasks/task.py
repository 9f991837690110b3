"""What a task is: questions about videos, where the videos are, and what counts as right."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc_stream.video import Frame, VideoError, open_video

Shares = NDArray[np.float64]


class TaskError(ValueError):
    """A task that can't be read, or lacks its data; one line, with the remedy."""


@dataclass(frozen=True)
class Item:
    """A question about a video.

    Attributes:
        name: its own, in its task.
        video: which one.
        text: as it is put to the model.
        answer: the right one.
        choices: answers among which the model chooses by their likelihood; none: it writes one.
        time: seconds of the video after which it is asked, of which the model sees nothing more;
            None: at the end.
        group: of questions that are counted together.
    """

    name: str
    video: str
    text: str
    answer: str
    choices: tuple[str, ...] = ()
    time: float | None = None
    group: str = ""


class Task(ABC):
    """Questions about videos.

    Attributes:
        name: what to call it.
        items: its questions.
        max_new_tokens: where an answer that the model writes is cut off.
        notes: what a reader of its figures must know, a sentence each.
    """

    name: str
    items: tuple[Item, ...]
    max_new_tokens: int = 16
    notes: tuple[str, ...] = ()

    @abstractmethod
    def open(self, video: str) -> AbstractContextManager[Iterator[Frame]]:
        """Return the frames of a video.

        Raises:
            VideoError: it is missing; also while frames are read, where it is damaged.
        """

    def right(self, item: Item, response: str) -> bool:
        """Say whether a response counts as right, as the benchmark publishes it."""
        return response.strip() == item.answer

    def strictly_right(self, item: Item, response: str) -> bool:
        """Say whether a response is the right answer and nothing else."""
        return self.right(item, response)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of its questions, in their order."""
        return tuple(dict.fromkeys(item.group for item in self.items))

    def mean(self, right: Shares, asked: Shares) -> Shares:
        """Return the score over all questions, in 0..1: the share of them that are right.

        Args:
            right, asked: how many of each group, [..., groups], in the order of `groups`.

        Returns:
            [...]; NaN where nothing was asked.
        """
        return _share(right.sum(-1), asked.sum(-1))

    @abstractmethod
    def check_videos(self) -> None:
        """Refuse a task none of whose videos is there.

        Raises:
            TaskError: one line that says where to put them.
        """


class FileTask(Task):
    """A task whose videos are files in a folder.

    Args:
        name: what to call it.
        items: at least one; the video of each is a path from `folder`.
        folder: of the videos.
        fps: frames of each second that are taken; None: all.
        source: where its data comes from.
    """

    def __init__(
        self,
        name: str,
        items: Sequence[Item],
        folder: Path,
        fps: float | None,
        source: str = "",
    ) -> None:
        if not items:
            raise TaskError(f"{name} has no questions")
        names: set[str] = set()
        for item in items:
            if item.name in names:
                raise TaskError(f"{name} has two questions of the name {item.name!r}")
            names.add(item.name)
        self.name, self.items, self.folder, self.fps = name, tuple(items), folder, fps
        self._source = source

    def open(self, video: str) -> AbstractContextManager[Iterator[Frame]]:
        path = self.folder / video
        if not path.exists():
            raise VideoError(f"{path} is missing")

        def warn(line: str) -> None:
            # What is cut short would be answered from what is left of it.
            raise VideoError(line)

        return open_video(path, fps=self.fps, warn=warn)

    def check_videos(self) -> None:
        videos = dict.fromkeys(item.video for item in self.items)
        if not any((self.folder / video).exists() for video in videos):
            where = f" ({self._source})" if self._source else ""
            raise TaskError(
                f"none of the {len(videos)} videos of {self.name} is there: put them{where} into "
                f"{self.folder}, as {next(iter(videos))} for instance"
            )


def means_of_means(right: Shares, asked: Shares, categories: Sequence[Sequence[int]]) -> Shares:
    """Return the mean over categories of the mean over their groups of the share that is right.

    Groups of which nothing was asked, and categories without any, are left out.

    Args:
        right, asked: as in `Task.mean`.
        categories: the groups of each.
    """
    groups = _share(right, asked)
    means = [_mean([groups[..., group] for group in category]) for category in categories]
    return _mean(means)


def _mean(values: Sequence[Shares]) -> Shares:
    stacked = np.stack([np.asarray(value) for value in values])
    known = np.isfinite(stacked)
    return _share(np.where(known, stacked, 0).sum(0), known.sum(0).astype(np.float64))


def _share(right: Shares, asked: Shares) -> Shares:
    return np.divide(right, asked, out=np.full_like(right, np.nan), where=asked > 0)


def read_json(path: Path, name: str, source: str = "") -> Any:
    """Return what a JSON file holds; of a file with a JSON value a line, a list of them.

    Raises:
        TaskError: it isn't there, or is broken; the error names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        where = f" ({source})" if source else ""
        raise TaskError(f"{name} needs {path}, which is not there: put it there{where}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} cannot be read ({error}): check that it is a JSON file") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as whole:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) > 1 and all(line.lstrip().startswith("{") for line in lines[:2]):
            return [_of_line(path, *line) for line in enumerate(text.splitlines(), 1) if line[1]]
        raise _broken(path, whole.lineno, whole.msg) from None


def _of_line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise _broken(path, number, error.msg) from None


def _broken(path: Path, line: int, why: str) -> TaskError:
    return TaskError(f"{path} is broken in line {line} ({why}): correct it, or get it anew")


class Fields:
    """An entry of a task's file, whose fields are asked for by name; errors say which entry.

    Args:
        value: the entry.
        where: what errors call it, "question 3 of tasks.json".
    """

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise TaskError(f"{where} must be an object, but is a {type(value).__name__}")
        self.where = where
        self._value = value

    def __contains__(self, name: str) -> bool:
        return self._value.get(name) is not None

    def text(self, name: str) -> str:
        """Return a text that has something in it; a whole number is one."""
        value = self._get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(name, "a text", value)
        return value

    def number(self, name: str) -> float:
        """Return a number of at least 0."""
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
            raise self._wrong(name, "a number from 0 on", value)
        return float(value)

    def count(self, name: str) -> int:
        """Return a whole number of at least 0."""
        value = self.number(name)
        if value != int(value):
            raise self._wrong(name, "a whole number", value)
        return int(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of at least two texts."""
        value = self._get(name)
        if not isinstance(value, list) or len(value) < 2:
            raise self._wrong(name, "a list of at least two", value)
        return tuple(str(each) for each in value)

    def each(self, name: str, what: str) -> list[Fields]:
        """Return a list of entries."""
        value = self._get(name)
        if not isinstance(value, list):
            raise self._wrong(name, "a list", value)
        return [
            Fields(each, f"{what} {number} of {self.where}") for number, each in enumerate(value, 1)
        ]

    def error(self, message: str) -> TaskError:
        """Return an error about this entry."""
        return TaskError(f"{self.where}: {message}")

    def _get(self, name: str) -> Any:
        if name not in self._value:
            raise TaskError(f"{self.where} has no {name!r}")
        return self._value[name]

    def _wrong(self, name: str, wanted: str, value: Any) -> TaskError:
        return self.error(f"{name} must be {wanted}, but is {value!r}")


def entries(document: Any, what: str, path: Path) -> list[Fields]:
    """Return the entries of a file that holds a list of them.

    Raises:
        TaskError: it holds something else.
    """
    if not isinstance(document, list) or not document:
        raise TaskError(f"{path} must hold a list of at least one {what}, but does not")
    return [Fields(each, f"{what} {number} of {path}") for number, each in enumerate(document, 1)]
