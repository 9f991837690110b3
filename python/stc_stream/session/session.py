"""Streaming sessions: frames go in as they come, questions are answered at any time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, overload

import torch
from torch import Tensor

from stc_stream.cacher import CacherConfig
from stc_stream.cacher.part import TowerPart
from stc_stream.pruner import PrunerConfig
from stc_stream.session import checks
from stc_stream.session.answer import Answer, Choose, Text, chosen, most_likely
from stc_stream.session.memory import FullMemory, Memory, MemoryFullError
from stc_stream.session.models import read_model
from stc_stream.session.numbering import Positions
from stc_stream.session.processor import SessionProcessor
from stc_stream.session.pruning import SessionPruner
from stc_stream.session.results import Fed, SessionStats
from stc_stream.session.settings import Settings
from stc_stream.session.stream import Stream


class StreamingSession:
    """A video LLM that watches a stream: frames are prefilled as they come, questions cost a fork.

    Frames go through the tower (with a Cacher), the projector, the Pruner and the LLM, whose keys
    and values are kept; the chunks in which they come make no difference. A question is answered
    behind all frames so far, and leaves nothing behind. Several sessions may run on one model, in
    several threads; threads that share a session wait for each other.

    Args:
        model: a video LLM of transformers (docs/sessions.md lists the families), on its device.
        processor: its processor; or a `SessionProcessor`, where there is no torchvision.
        cacher: how the tower runs: a `CacherConfig`, an object with `attach(tower)`, or None for
            densely. Sessions on one model share a tower: their configs must be equal, or None.
        pruner: which tokens go on: a `PrunerConfig`, a pruner (the session makes a copy), or None
            for all. It sees a frame at a time.
        memory: what the LLM remembers; None: `FullMemory()`.
        positions: "kept", a kept token has the position that it has among all; "contiguous", kept
            tokens are numbered without gaps, so that more frames fit into the model's context (on
            axes of time, row and column: frames of which nothing is kept take no time).

    Raises:
        TypeError: a model of no family that is known, a tower that can't be read, an argument of
            another type.
        ValueError: a processor of another model, a budget above a frame's tokens, another Cacher
            than other sessions on the model have.

    Source: arXiv 2512.00891; frames before the question as in ReKV, arXiv 2503.00540.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        cacher: CacherConfig | TowerPart | None = None,
        pruner: PrunerConfig | Any | None = None,
        memory: Memory | None = None,
        positions: Positions = "kept",
    ) -> None:
        read = read_model(model)
        own = SessionProcessor.of(processor)
        checks.check_processor(own, read)
        checks.check_positions(positions, read)
        self._settings = Settings(
            read,
            own,
            cacher,
            FullMemory() if memory is None else checks.check_memory(memory),
            positions,
            read.prompt(own, "?", video=True).before,
        )
        self._lock = threading.RLock()
        self._last: SessionStats | None = None
        self._stream: Stream | None = Stream(
            self._settings, SessionPruner(pruner, read.tokens_per_frame, read.width)
        )

    @property
    def stats(self) -> SessionStats:
        """What was seen, and what is held now; after `close`, nothing is held."""
        with self._lock:
            if self._stream is None:
                assert self._last is not None
                return self._last
            progress, cache = self._stream.progress, self._stream.cache
            return SessionStats(
                progress.frames,
                progress.tokens_seen,
                cache.tokens_held,
                cache.bytes_device,
                cache.bytes_host,
                cache.bytes_reserved,
                cache.frames_forgotten * self._settings.model.frames_per_patch,
                len(progress.waiting.times),
            )

    @property
    def retrieved(self) -> tuple[tuple[int, ...], ...]:
        """For each layer the frames that the last question brought back, by number, in order.

        Frames are numbered from 0 in the order in which they were fed. Empty where the memory
        brings none back, or nothing was asked since the first frame.
        """
        with self._lock:
            return () if self._stream is None else self._stream.retrieved

    def feed(self, frames: Any, timestamps: Sequence[float] | None = None) -> Fed:
        """Take frames in; after an error none of them counts.

        Where several frames make a temporal patch, those that are too few for one wait in the
        session; a question is answered as if the last of them was repeated until there are enough.

        Args:
            frames: uint8 [F, H, W, 3], tensor or array, F ≥ 1, of any size. The first frame says
                to which size a model that takes several has all of them brought.
            timestamps: the frames' times in seconds, which never go back. Models that don't look
                at times need none; for the others, a frame without one comes 1/24 s after the one
                before it.

        Raises:
            TypeError, ValueError: frames or timestamps of another form, times that go back, tokens
                that are not finite, a budget above a frame's tokens.
            MemoryFullError: the memory, or the model's context, has no room for them.
            RuntimeError: the session is closed.
        """
        with self._lock:
            stream = self._opened()
            return stream.feed(checks.check_frames(frames), timestamps)

    @overload
    def ask(
        self,
        question: str,
        max_new_tokens: int = 64,
        *,
        stream: Literal[False] = False,
        choose: Choose = most_likely,
    ) -> str: ...

    @overload
    def ask(
        self,
        question: str,
        max_new_tokens: int = 64,
        *,
        stream: Literal[True],
        choose: Choose = most_likely,
    ) -> Iterator[str]: ...

    def ask(
        self,
        question: str,
        max_new_tokens: int = 64,
        *,
        stream: bool = False,
        choose: Choose = most_likely,
    ) -> str | Iterator[str]:
        """Answer a question about the frames so far; the stream goes on as if it was not asked.

        Args:
            question: any text.
            max_new_tokens: where an answer without an end is cut off; also at the end of the
                model's context.
            stream: return an iterator over pieces of text as they come. It answers about the
                frames fed before this call, whatever is fed or asked between two pieces.
            choose: the next token, of its logits; by default the most likely.

        Raises:
            ValueError: an empty question, `max_new_tokens` below 1, a choice that is no token.
            MemoryFullError: the question does not fit into the model's context.
            RuntimeError: the session is closed.
        """
        checks.check_count("max_new_tokens", max_new_tokens)
        if not callable(choose):
            raise TypeError(f"choose must be a function from logits to a token, but is {choose!r}")
        with self._lock:
            answer = self._asked(question)
        pieces = self._pieces(answer, max_new_tokens, choose)
        return pieces if stream else "".join(pieces)

    def logits(self, question: str) -> Tensor:
        """Return the logits of the first token of the answer, float32 [vocabulary].

        Raises: as `ask`.
        """
        with self._lock:
            return self._asked(question).logits

    def score(self, question: str, answers: Sequence[str]) -> Tensor:
        """Return the log-probability of each answer, summed over its tokens, float32 [answers].

        Raises: as `ask`; ValueError for an empty answer, or none.
        """
        texts = checks.check_answers(answers)
        tokenizer = self._settings.processor.tokenizer
        tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        with self._lock:
            asked = self._asked(question)
            longest = max(map(len, tokens)) - 1
            if longest > asked.room:
                raise MemoryFullError(
                    f"an answer has {longest + 1} tokens, for which the model's context has no room"
                )
            return torch.stack([asked.score(answer) for answer in tokens])

    def fork(self) -> StreamingSession:
        """Return a session that starts with what this one has seen, and goes its own way.

        No keys are copied until it is fed, and then once. In the tower its stream starts with a
        refresh frame, since a Cacher keeps one reference for each stream.

        Raises:
            ValueError: the cacher is an object with `attach`, which knows of one stream.
            RuntimeError: the session is closed.
        """
        with self._lock:
            stream = self._opened().fork()
        other = object.__new__(type(self))
        other._settings, other._stream = self._settings, stream
        other._lock, other._last = threading.RLock(), None
        return other

    def reset(self) -> None:
        """Forget all frames: the session is as new. Answers on their way go on.

        Raises:
            RuntimeError: the session is closed.
        """
        with self._lock:
            self._opened().reset()

    def close(self) -> None:
        """Let go of the memory and the tower; again is harmless."""
        with self._lock:
            if self._stream is None:
                return
            self._last = replace(
                self.stats, tokens_held=0, bytes_device=0, bytes_host=0, bytes_reserved=0
            )
            self._stream.release()
            self._stream = None

    def __enter__(self) -> StreamingSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._stream is None else f"{self._stream.progress.frames} frames"
        return (
            f"<StreamingSession of {self._settings.model.family}, {self._settings.memory}, {state}>"
        )

    def _opened(self) -> Stream:
        if self._stream is None:
            raise RuntimeError("the session is closed: make another one")
        return self._stream

    def _asked(self, question: str) -> Answer:
        return self._opened().ask(checks.check_text("question", question))

    def _pieces(self, answer: Answer, limit: int, choose: Choose) -> Iterator[str]:
        """Give the text of an answer; others may use the session between two pieces."""
        text, stop = Text(self._settings.processor.tokenizer), self._settings.model.stop_tokens
        token = chosen(choose, answer.logits)
        for left in reversed(range(limit)):
            if token in stop:
                break
            piece = text.add(token)
            if piece:
                yield piece
            with self._lock:
                if not left or not answer.room:
                    break
                answer.add(token)
            token = chosen(choose, answer.logits)
        rest = text.rest()
        if rest:
            yield rest
