"""A finished (or interrupted) stream with questions, as table, page and document are given it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

from stc_stream.cacher import CacherConfig
from stc_stream.evaluate.answers import AnswerRun, ChunkRun, StageTimes
from stc_stream.evaluate.method import Method
from stc_stream.evaluate.moments import Question
from stc_stream.report.terminal import printable
from stc_stream.session import FullMemory, SessionStats
from stc_stream.session.load import VideoLlm
from stc_stream.video import LiveCounts

SIDES = ("dense", "compressed")
"""The two methods of a run, in their order."""


@dataclass(frozen=True, eq=False)
class FedFrames:
    """A chunk of frames, both ways.

    Attributes:
        indices: the frames' places in the source.
        times: the frames' seconds.
        runs: dense and compressed; None where a memory was full.
    """

    indices: tuple[int, ...]
    times: tuple[float, ...]
    runs: tuple[ChunkRun | None, ...]


@dataclass(frozen=True, eq=False)
class AskedQuestion:
    """A question, both ways.

    Attributes:
        question: as given.
        frames: how many frames had been taken in.
        time: the last one's seconds; None: there was none.
        runs: dense and compressed; None where it was not asked.
    """

    question: Question
    frames: int
    time: float | None
    runs: tuple[AnswerRun | None, ...]

    @property
    def comparable(self) -> bool:
        """Whether both ways answered, and nobody stopped them."""
        return all(run is not None and run.ending in ("end", "limit") for run in self.runs)


@dataclass(frozen=True, eq=False)
class AnswersRun:
    """One run of a `SessionComparison` of two methods over a source.

    Attributes:
        source: what to call the source.
        model: the video LLM.
        methods: the dense one, and what is held against it.
        positions, chunk, max_new_tokens: as the sessions were run.
        chunks: in order.
        asked: the questions, in the order in which they were asked.
        not_asked: those whose moment did not come.
        full: of each method whose memory was full, what it said; else None.
        warnings: what was wrong with the source, one line each.
        complete: False when it was interrupted.
        fps: the sampling asked for, frames a second.
        live: of a live source, what became of its frames.
    """

    source: str
    model: VideoLlm
    methods: tuple[Method, Method]
    positions: str
    chunk: int
    max_new_tokens: int
    chunks: tuple[FedFrames, ...]
    asked: tuple[AskedQuestion, ...]
    not_asked: tuple[Question, ...] = ()
    full: tuple[str | None, ...] = (None, None)
    warnings: tuple[str, ...] = ()
    complete: bool = True
    fps: float | None = None
    live: LiveCounts | None = None

    @property
    def frames(self) -> int:
        """How many frames were taken in."""
        return sum(len(chunk.indices) for chunk in self.chunks)

    @cached_property
    def compared_frames(self) -> int:
        """How many frames were taken in both ways: those that times are summed over."""
        return sum(len(chunk.indices) for chunk in self._both_fed)

    @cached_property
    def compared_questions(self) -> int:
        """How many questions were answered both ways."""
        return sum(question.comparable for question in self.asked)

    @cached_property
    def times(self) -> tuple[StageTimes, StageTimes]:
        """Seconds by stage, dense and compressed, over what ran both ways."""
        questions = [question for question in self.asked if question.comparable]

        def side(place: int) -> StageTimes:
            fed = [chunk.runs[place] for chunk in self._both_fed]
            answered = [question.runs[place] for question in questions]
            return StageTimes.of([run for run in (*fed, *answered) if run is not None])

        return side(0), side(1)

    @property
    def stats(self) -> tuple[SessionStats | None, ...]:
        """What each session held after its last frames; None: it had none."""

        def last(place: int) -> SessionStats | None:
            runs = [run for chunk in self.chunks if (run := chunk.runs[place]) is not None]
            return runs[-1].stats if runs else None

        return last(0), last(1)

    @property
    def compared_stats(self) -> tuple[SessionStats, SessionStats] | None:
        """What both held after the last frames that both took in; None: there were none."""
        if not self._both_fed:
            return None
        dense, compressed = self._both_fed[-1].runs
        assert dense is not None and compressed is not None
        return dense.stats, compressed.stats

    @property
    def kept(self) -> tuple[int, int]:
        """Tokens that the projector made of the frames taken in both ways, and those kept."""
        runs = [run for chunk in self._both_fed if (run := chunk.runs[1]) is not None]
        return _sum(runs, lambda run: run.tokens), _sum(runs, lambda run: run.kept)

    @property
    def answer_tokens(self) -> tuple[int, int]:
        """Tokens of the answers to questions that were answered both ways."""
        both = [question.runs for question in self.asked if question.comparable]
        dense, compressed = (
            sum(run.tokens for runs in both if (run := runs[place]) is not None) for place in (0, 1)
        )
        return dense, compressed

    @property
    def title(self) -> str:
        """What to call the compressed method in a sentence."""
        return "STC" if self.cacher is not None else printable(self.methods[1].name)

    @property
    def cacher(self) -> CacherConfig | None:
        """The Cacher's settings; None: the method has another tower part, or none."""
        tower = self.methods[1].tower
        return tower if isinstance(tower, CacherConfig) else None

    @property
    def forgets(self) -> bool:
        """Whether the compressed method's memory is another than the full one."""
        return not isinstance(self.methods[1].memory, FullMemory | None)

    @cached_property
    def places(self) -> Sequence[tuple[int, float]]:
        """Of each frame taken in, its place in the source and its seconds."""
        return [
            place for chunk in self.chunks for place in zip(chunk.indices, chunk.times, strict=True)
        ]

    @property
    def memory(self) -> str:
        """What to call the compressed method's memory: its class and what was set of it."""
        memory: Any = self.methods[1].memory or FullMemory()
        if not is_dataclass(memory):
            return repr(memory)
        settings = [(each.name, getattr(memory, each.name)) for each in fields(memory)]
        written = ", ".join(f"{name}={value}" for name, value in settings if value is not None)
        return f"{type(memory).__name__}({written})"

    @cached_property
    def _both_fed(self) -> Sequence[FedFrames]:
        return [chunk for chunk in self.chunks if all(run is not None for run in chunk.runs)]


def _sum(runs: Sequence[ChunkRun], count: Callable[[ChunkRun], int]) -> int:
    return sum(map(count, runs))
