"""A stream and questions about it, by several methods through sessions: what each stage takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from stc_stream.evaluate.method import Method
from stc_stream.evaluate.opened import Opened
from stc_stream.evaluate.timing import WallClock, timed
from stc_stream.evaluate.variants import shared_copy
from stc_stream.session import MemoryFullError, SessionStats, StreamingSession
from stc_stream.session.answer import most_likely
from stc_stream.session.memory import Memory, RetrievalMemory, WindowMemory
from stc_stream.session.models import read_model
from stc_stream.session.numbering import Positions

STAGES = ("preprocess", "tower", "prune", "prefill", "first_token", "later_tokens", "other")
"""In the order in which a stream runs through them; "first_token" is from the question on."""

Ending = Literal["end", "limit", "stopped", "no_room"]
See = Callable[[int, str], object]


@dataclass(frozen=True, eq=False)
class ChunkRun:
    """A chunk of frames that a method took in.

    Attributes:
        frames: how many.
        tokens: tokens that the projector made of them.
        kept: those of them that went on to the LLM.
        seconds: of each stage; "other" is what is left of the call's.
        stats: of the session, after them.
    """

    frames: int
    tokens: int
    kept: int
    seconds: Mapping[str, float]
    stats: SessionStats


@dataclass(frozen=True, eq=False)
class AnswerRun:
    """What a method answered.

    Attributes:
        text: the answer.
        tokens: how many it has, without one that ends it.
        seconds: of "first_token", from the question on, and of "later_tokens".
        ending: "end", the model ended it; "limit", it was cut off; "stopped", the caller ended it;
            "no_room", the question did not fit into the model's context.
        retrieved: for each layer, the numbers of the frames that the memory brought back for it.
    """

    text: str
    tokens: int
    seconds: Mapping[str, float]
    ending: Ending
    retrieved: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class StageTimes:
    """Seconds by stage, of all stages of `STAGES`, summed over chunks and answers."""

    seconds: Mapping[str, float]

    @classmethod
    def of(cls, runs: Sequence[ChunkRun | AnswerRun]) -> StageTimes:
        """Add up what chunks and answers took."""
        return cls({stage: sum(run.seconds.get(stage, 0.0) for run in runs) for stage in STAGES})

    @property
    def whole(self) -> float:
        """Seconds from the first frame to the last answer."""
        return sum(self.seconds.values())

    def share(self, stage: str) -> float:
        """Return a stage's share of the whole."""
        return self.seconds[stage] / self.whole if self.whole else 0.0

    def saved(self, stage: str, dense: StageTimes) -> float | None:
        """Return the share of the dense stage's time that is saved; None: it took none."""
        own = dense.seconds[stage]
        return 1 - self.seconds[stage] / own if own else None

    def saved_of_whole(self, stage: str, dense: StageTimes) -> float:
        """Return what this stage saves, as a share of the dense whole."""
        return (dense.seconds[stage] - self.seconds[stage]) / dense.whole if dense.whole else 0.0


class MethodSession(Opened):
    """A method on a session of its own, timed.

    A method with a tower part runs on a copy of the model that shares its weights, so that methods
    need not agree on what is on the tower.

    Args:
        model, processor, positions: as in `StreamingSession`; the model stays as it is.
        method: its parts are the session's.

    Attributes:
        method: as given.
        session: the session.

    Raises: as `StreamingSession`.
    """

    def __init__(
        self, model: Any, processor: Any, method: Method, positions: Positions = "kept"
    ) -> None:
        super().__init__()
        read = read_model(model)
        self.method = method
        self._stop_tokens = read.stop_tokens
        self._clock = WallClock(read.device)
        self.session = self._open.enter_context(
            StreamingSession(
                model if method.tower is None else shared_copy(model),
                processor,
                cacher=method.tower,
                pruner=method.pruner,
                memory=method.memory,
                positions=positions,
            )
        )

    def feed(self, frames: Any, timestamps: Sequence[float] | None = None) -> ChunkRun:
        """Take frames in, as `StreamingSession.feed` does, and raise what it raises."""
        fed, whole = timed(lambda: self.session.feed(frames, timestamps), self._clock)
        seconds = {**fed.seconds, "other": max(0.0, whole - sum(fed.seconds.values()))}
        return ChunkRun(fed.frames, fed.tokens, fed.kept, seconds, self.session.stats)

    def ask(
        self,
        question: str,
        max_new_tokens: int = 64,
        see: Callable[[str], object] = lambda piece: None,
        going: Callable[[], bool] = lambda: True,
    ) -> AnswerRun:
        """Answer a question as `StreamingSession.ask` does, and raise what it raises.

        A question that does not fit is no error, but an answer that ended so.

        Args:
            see: given the answer's pieces as they come.
            going: asked before each token; where it says False, the answer ends.
        """
        laps, tokens = [self._clock()], 0
        ending: Ending = "limit"

        def choose(logits: Tensor) -> int:
            nonlocal tokens, ending
            token = most_likely(logits)
            laps.append(self._clock())
            if not going():
                raise _Stopped
            if token in self._stop_tokens:
                ending = "end"
            else:
                tokens += 1
            return token

        pieces = []
        try:
            asked = self.session.ask(question, max_new_tokens, stream=True, choose=choose)
            for piece in asked:
                pieces.append(piece)
                see(piece)
        except _Stopped:
            ending = "stopped"
        except MemoryFullError:
            return AnswerRun("", 0, {}, "no_room")
        seconds = {"first_token": laps[1] - laps[0], "later_tokens": laps[-1] - laps[1]}
        return AnswerRun("".join(pieces), tokens, seconds, ending, self.session.retrieved)


class SessionComparison(Opened):
    """Several methods watch one stream and answer the same questions, in turns.

    All in one process on the same frames. The order in which they run alternates, so that every
    phase of a refresh cycle gets both. A method whose memory is full stops there, and is asked no
    more once another has seen more frames; the others go on.

    Args:
        model, processor, positions: as in `StreamingSession`; the model stays as it is.
        methods: at least one; the first is what the others are compared with.
        max_new_tokens: where an answer without an end is cut off.
        chunk: frames that will mostly be fed together.

    Attributes:
        sessions: of each method.
        full: of each method whose memory was full, what it said; else None.

    Raises: as `StreamingSession`.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        methods: Sequence[Method],
        *,
        positions: Positions = "kept",
        max_new_tokens: int = 64,
        chunk: int = 1,
    ) -> None:
        super().__init__()
        with ExitStack() as stack:
            self.sessions = tuple(
                stack.enter_context(MethodSession(model, processor, each, positions))
                for each in methods
            )
            self._open = stack.pop_all()
        self.full: list[str | None] = [None for _ in methods]
        self._limit = max_new_tokens
        longest = max(method.refresh_interval for method in methods)
        self._cycle = -(-longest // chunk)
        self._count = 0

    def warm_up(self, frames: Any, question: str = "?") -> None:
        """Feed the frames to every method twice, ask once, and begin another stream.

        A memory without room for them is no error yet.
        """
        for each in self.sessions:
            with suppress(MemoryFullError):
                each.feed(frames)
                each.feed(frames)
            each.ask(question, 2)
        self.reset()

    def feed(
        self, frames: Any, timestamps: Sequence[float] | None = None
    ) -> tuple[ChunkRun | None, ...]:
        """Take the next frames in.

        Returns:
            A run a method; None where its memory is full.

        Raises:
            MemoryFullError: none has room for them.
            ValueError, TypeError: as `StreamingSession.feed`.
        """
        runs: list[ChunkRun | None] = [None for _ in self.sessions]
        for place in self._order():
            if self.full[place] is None:
                try:
                    runs[place] = self.sessions[place].feed(frames, timestamps)
                except MemoryFullError as error:
                    self.full[place] = str(error)
        self._count += 1
        if all(self.full):
            raise MemoryFullError(self.full[0])
        return tuple(runs)

    def ask(
        self,
        question: str,
        see: See = lambda place, piece: None,
        going: Callable[[], bool] = lambda: True,
    ) -> tuple[AnswerRun | None, ...]:
        """Ask every method.

        Args:
            see: given the place of a method and "" when its answer begins, then its pieces.
            going: asked before each token; where it says False, all answers end.

        Returns:
            A run a method; None where another has seen more frames, or its answer had not begun.
        """
        runs: list[AnswerRun | None] = [None for _ in self.sessions]
        seen = [each.session.stats.frames for each in self.sessions]
        for place in self._order():
            if seen[place] < max(seen) or not going():
                continue
            see(place, "")

            def piece(text: str, place: int = place) -> None:
                see(place, text)

            runs[place] = self.sessions[place].ask(question, self._limit, piece, going)
        return tuple(runs)

    def reset(self) -> None:
        """Begin another stream."""
        for each in self.sessions:
            each.session.reset()
        self.full = [None for _ in self.sessions]
        self._count = 0

    def _order(self) -> Sequence[int]:
        # A cycle of odd length meets both orders by itself.
        turn = self._count + (self._count // self._cycle if self._cycle % 2 == 0 else 0)
        order = range(len(self.sessions))
        return order if turn % 2 == 0 else order[::-1]


def endless_positions(memory: Memory | None, axes: int) -> Positions:
    """Return the positions with which a stream lasts longest.

    Args:
        memory: a window's keys can be moved, so that kept tokens are numbered from 0 for ever.
        axes: of the model's positions; with several, keys can't be moved.
    """
    moves = isinstance(memory, WindowMemory | RetrievalMemory) and axes == 1
    return "contiguous" if moves else "kept"


class _Stopped(Exception):
    """An answer that its caller ended."""
