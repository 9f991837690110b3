"""Methods on a task's videos, one after the other: frames in, answers out."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np

from stc_stream.evaluate.accuracy.answers import Response, VideoAnswers
from stc_stream.evaluate.accuracy.encoding import SharedEncoding
from stc_stream.evaluate.accuracy.watch import WatchedTower
from stc_stream.evaluate.answers import MethodSession
from stc_stream.evaluate.method import Method
from stc_stream.evaluate.moments import Chunk, Question, moments
from stc_stream.evaluate.opened import Opened
from stc_stream.evaluate.tasks import Item, Task
from stc_stream.evaluate.timing import WallClock, timed
from stc_stream.session import MemoryFullError
from stc_stream.session.models import read_model
from stc_stream.session.numbering import Positions
from stc_stream.video import Frame

HELD_BYTES = 1 << 29
"""Pictures of a video up to this are decoded once; longer videos once for each method."""


class TaskRunner(Opened):
    """Runs methods on the questions of a task.

    Each question is asked behind the frames up to its time, of a session that goes on; of a rule
    about whole clips, whose choice depends on later frames, all frames so far are shown anew for
    each question. Methods run one after the other on a video, so that one memory is held at a time;
    those whose tower runs densely share its frames, and are charged what these took once.

    Args:
        model, processor, positions: as in `StreamingSession`; the model stays as it is.
        task: whose questions.
        methods: each of another name.
        chunk: frames to feed together, 1 to 16.

    Attributes:
        task: as given.
        videos: the questions of each video, in order of time.

    Raises: as `StreamingSession`.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        task: Task,
        methods: Sequence[Method],
        *,
        positions: Positions = "kept",
        chunk: int = 1,
    ) -> None:
        super().__init__()
        if not 1 <= chunk <= 16:
            raise ValueError(f"chunk must be in 1..16, but is {chunk}")
        self.task = task
        read = read_model(model)
        self._shared = SharedEncoding(read)
        self._clock = WallClock(read.device)
        self._chunk = chunk
        self._runs: dict[str, _MethodRun] = {}
        limit = task.max_new_tokens
        with ExitStack() as stack:
            for method in methods:
                run = _MethodRun(model, processor, method, positions, self._shared, limit)
                self._runs[method.name] = stack.enter_context(run)
            self._open = stack.pop_all()
        self._warm = False
        found: dict[str, list[Item]] = {}
        for item in task.items:
            found.setdefault(item.video, []).append(item)
        self.videos: Mapping[str, tuple[Item, ...]] = {
            video: tuple(sorted(items, key=_time)) for video, items in found.items()
        }

    def run(self, video: str, methods: Sequence[str]) -> Iterator[VideoAnswers]:
        """Answer all questions about a video, method by method.

        Args:
            video: of the task.
            methods: names of those that are to run.

        Raises:
            VideoError: it is missing or damaged; no method has run then.
        """
        items = self.videos[video]
        frames = _Frames(self.task, video)
        self._shared.begin()
        for name in methods:
            run = self._runs[name]
            if not self._warm:
                self._warm_up(frames)
            run.begin()
            if run.whole_calls:
                self._in_whole(run, frames, items)
            else:
                self._as_it_comes(run, frames, items)
            yield run.answers(video)

    def _warm_up(self, frames: _Frames) -> None:
        """Run every method on a frame, so that no later one is charged for what happens once."""
        first = next(frames.all())
        for run in self._runs.values():
            run.begin()
            run.feed([first])
            run.ask(Item("", "", "?", ""), self._clock)
            run.end()
        self._shared.begin()
        self._warm = True

    def _as_it_comes(self, run: _MethodRun, frames: _Frames, items: Sequence[Item]) -> None:
        # By identity: two questions may be the same in their words and their time.
        questions = [Question(item.text, item.time) for item in items]
        asked = {id(question): item for question, item in zip(questions, items, strict=True)}
        # Also those after the video's end are asked.
        for next_one in moments(frames.all(), questions, self._chunk, end=math.inf):
            if isinstance(next_one, Chunk):
                run.feed(next_one.frames)
            else:
                run.ask(asked[id(next_one)], self._clock)

    def _in_whole(self, run: _MethodRun, frames: _Frames, items: Sequence[Item]) -> None:
        moment: float | None = None
        for item in items:
            if _time(item) != moment:
                moment = _time(item)
                run.start_again()
                for chunk in moments(frames.all(until=moment), (), sys.maxsize):
                    assert isinstance(chunk, Chunk)
                    run.feed(chunk.frames)
            run.ask(item, self._clock)


class _MethodRun(Opened):
    """A method's session, and what is counted of a video."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        method: Method,
        positions: Positions,
        shared: SharedEncoding,
        max_new_tokens: int,
    ) -> None:
        super().__init__()
        self.method = method
        self._limit = max_new_tokens
        self._tower = None if method.tower is None else WatchedTower(method.tower)
        self._shared = shared if method.tower is None else None
        watched = method if self._tower is None else replace(method, tower=self._tower)
        base = shared.model if self._tower is None else model
        self._session = self._open.enter_context(MethodSession(base, processor, watched, positions))
        self._count()

    @property
    def whole_calls(self) -> bool:
        """Whether its rule is about whole clips."""
        pruner = self.method.pruner
        return pruner is not None and bool(getattr(pruner.strategy, "whole_calls", False))

    def begin(self) -> None:
        """Begin a video."""
        self._count()
        self.start_again()

    def end(self) -> None:
        """Let go of what is remembered of a video."""
        self._session.session.reset()

    def start_again(self) -> None:
        """Show the same video anew."""
        self.end()
        self._full = False
        if self._shared is not None:
            self._shared.take_owed()

    def feed(self, frames: Sequence[Frame]) -> None:
        """Take frames in, all of one size; when the memory is full, none any more."""
        if self._full:
            return
        images = np.stack([frame.image for frame in frames])
        try:
            if self._tower is None:
                run = self._session.feed(images)
            else:
                with self._tower.watching():
                    run = self._session.feed(images)
        except MemoryFullError:
            self._full = True
            return
        seconds = dict(run.seconds)
        if self._shared is not None:
            owed = self._shared.take_owed()
            seconds["tower"] = max(0.0, seconds.get("tower", 0.0) + owed)
        for stage, each in seconds.items():
            self._seconds[stage] = self._seconds.get(stage, 0.0) + each
        self._frames += run.frames
        self._tokens += run.tokens
        self._kept += run.kept

    def ask(self, item: Item, clock: WallClock) -> None:
        """Answer a question about the frames so far."""
        session = self._session.session
        held = session.stats.tokens_held
        text: str | None = None
        likelihoods: tuple[float, ...] = ()
        seconds = 0.0
        if not self._full:
            try:
                if item.choices:
                    scores, seconds = timed(lambda: session.score(item.text, item.choices), clock)
                    likelihoods = tuple(scores.tolist())
                    text = item.choices[int(scores.argmax())]
                else:
                    text, seconds = timed(lambda: session.ask(item.text, self._limit), clock)
            except MemoryFullError:
                pass
        self._responses.append(Response(item.name, text, likelihoods, seconds, held))

    def answers(self, video: str) -> VideoAnswers:
        """Return what there is of the video, and let go of it."""
        self.end()
        return VideoAnswers(
            self.method.name,
            video,
            tuple(self._responses),
            self._frames,
            self._tokens,
            self._kept,
            1.0 if self._tower is None else self._tower.take(),
            self._seconds,
        )

    def _count(self) -> None:
        self._responses: list[Response] = []
        self._frames = self._tokens = self._kept = 0
        self._seconds: dict[str, float] = {}
        self._full = False
        if self._tower is not None:
            self._tower.take()


class _Frames:
    """The frames of a video, decoded once if they fit, and seen to be whole before anything runs.

    Raises:
        VideoError: it is missing or damaged.
    """

    def __init__(self, task: Task, video: str) -> None:
        self._task, self._video = task, video
        self._held: list[Frame] | None = []
        size = 0
        with task.open(video) as frames:
            for frame in frames:
                size += frame.image.nbytes
                if size > HELD_BYTES:
                    self._held = None
                elif self._held is not None:
                    self._held.append(frame)

    def all(self, until: float = math.inf) -> Iterator[Frame]:
        """Give the frames up to a time."""
        if self._held is not None:
            yield from takewhile(lambda frame: frame.time <= until, self._held)
            return
        with self._task.open(self._video) as frames:
            yield from takewhile(lambda frame: frame.time <= until, frames)


def _time(item: Item) -> float:
    return math.inf if item.time is None else item.time
