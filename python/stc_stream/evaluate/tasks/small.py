"""Our own test set: short made-up clips, one question of each of eight tasks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

from stc_stream.evaluate.scenes import ANSWERS, Clip, make_clip
from stc_stream.evaluate.tasks.task import Item, Task
from stc_stream.video import Frame


@dataclass(frozen=True)
class Small:
    """`stc_stream.evaluate.scenes`, a frame a second, made anew from its seed on each run.

    Each question sees the frames until its moment. The model chooses among the answers that the
    question's task knows.

    Attributes:
        clips: how many, the first ones of the split.
        split: which; choices are made on "validation", and "test" is reported once.
    """

    clips: int = 300
    split: Literal["validation", "test", "train"] = "test"

    def __post_init__(self) -> None:
        if self.clips < 1:
            raise ValueError(f"clips must be at least 1, but is {self.clips}")

    def read(self) -> Task:
        """Return the task.

        Raises:
            ModuleNotFoundError: scikit-image or Pillow isn't installed.
        """
        return _SmallTask(self.clips, self.split)


class _SmallTask(Task):
    def __init__(self, clips: int, split: Literal["validation", "test", "train"]) -> None:
        self.name = "small" if split == "test" else f"small ({split})"
        self._split = split
        self._last: tuple[str, Clip] | None = None
        items = []
        for number in range(clips):
            for place, question in enumerate(self._clip(str(number)).questions):
                items.append(
                    Item(
                        f"{number}/{place}",
                        str(number),
                        question.text,
                        question.answer,
                        ANSWERS[question.task],
                        float(question.frame),
                        question.task,
                    )
                )
        self.items = tuple(items)

    def open(self, video: str) -> AbstractContextManager[Iterator[Frame]]:
        @contextmanager
        def opened() -> Iterator[Iterator[Frame]]:
            frames = self._clip(video).frames
            yield (Frame(number, float(number), image) for number, image in enumerate(frames))

        return opened()

    def check_videos(self) -> None:
        """They are made here."""

    def _clip(self, video: str) -> Clip:
        if self._last is None or self._last[0] != video:
            self._last = video, make_clip(self._split, int(video))
        return self._last[1]


TASK = Small
