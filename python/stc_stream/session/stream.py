"""A stream's way into the LLM: what was fed, what is held, and where the next token goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from stc_stream.cacher import CacherConfig
from stc_stream.cacher.part import TowerPart
from stc_stream.session import checks
from stc_stream.session.answer import Answer
from stc_stream.session.memory import (
    KeptFrame,
    Memory,
    MemoryFullError,
    Positions,
    SessionCache,
    StreamLayout,
    StreamMemory,
)
from stc_stream.session.models import VideoModel
from stc_stream.session.processor import SessionProcessor
from stc_stream.session.pruning import SessionPruner
from stc_stream.session.results import Fed
from stc_stream.session.tower import FRAMES_AT_ONCE, TowerLease

PREFILL_AT_ONCE = 4096
"""Tokens that go through the LLM together, so that its attention mask stays small."""


@dataclass(frozen=True, eq=False)
class Settings:
    """What a session was made with, which never changes.

    Attributes:
        model, processor: as read.
        cacher, memory, positions: as given.
        before: the tokens before a video in a prompt.
    """

    model: VideoModel
    processor: SessionProcessor
    cacher: CacherConfig | TowerPart | None
    memory: Memory
    positions: Positions
    before: list[int]

    def open(self) -> StreamMemory:
        """Return an empty memory."""
        layout = StreamLayout(self.positions, len(self.before), self.model.tokens_per_frame)
        return self.memory.open(self.model.model.config.get_text_config(), layout)


@dataclass(frozen=True)
class Progress:
    """How far a stream is: frames, tokens seen, the next position, the last frame's time."""

    frames: int = 0
    tokens_seen: int = 0
    position: int = 0
    timestamp: float | None = None


class Stream:
    """A stream of frames and the memory of it. One thread at a time.

    Attributes:
        progress: how far it is.
        cache: what is remembered of it.
        retrieved: for each layer, the numbers of the frames that the last question brought back.
    """

    def __init__(self, settings: Settings, pruner: SessionPruner) -> None:
        self._settings = settings
        self._pruner = pruner
        self._shares = False
        self.progress = Progress()
        self.retrieved: tuple[tuple[int, ...], ...] = ()
        self.cache = settings.open()
        self._tower = TowerLease(settings.model, settings.cacher)

    def feed(self, frames: Tensor, timestamps: Sequence[float] | None) -> Fed:
        """Take frames in, or none of them after an error.

        Args:
            frames: uint8 [F, H, W, 3].
        """
        progress, model = self.progress, self._settings.model
        last = checks.check_timestamps(timestamps, len(frames), progress.timestamp)
        count = len(frames) * model.tokens_per_frame
        if self._settings.positions == "kept":
            self._check_positions([len(self._before), *[model.tokens_per_frame] * len(frames)])
        # Before the tower, if possible: what has no room then costs nothing.
        budget = self._pruner.budget(model.tokens_per_frame)
        expected = None if budget is None else [budget] * len(frames)
        if expected is not None:
            self._reserve(expected)
        if self._shares:
            self.cache.own()
            self._shares = False
        clock = _Clock(model.device)
        with torch.no_grad(), self._all_or_nothing():
            kept = self._keep(frames, clock)
            counts = [len(frame.index) for frame in kept]
            if counts != expected:
                self._reserve(counts)
            position = self.cache.take(kept, progress.position, self._prefill)
            clock.lap("prefill")
            self.progress = Progress(
                progress.frames + len(frames), progress.tokens_seen + count, position, last
            )
        index = tuple(frame.index for frame in kept)
        return Fed(len(frames), count, sum(map(len, index)), index, clock.seconds)

    def ask(self, question: str) -> Answer:
        """Put a question behind the frames so far, in a fork."""
        settings, model, watched = self._settings, self._settings.model, self.progress.frames > 0
        prompt = settings.processor.prompt(question, video=watched)
        if watched and prompt.before != settings.before:
            raise ValueError("the chat template must put a video before the question")
        with torch.no_grad():
            inputs = model.embed(prompt.after if watched else prompt.before)
            if watched:
                inputs = torch.cat([model.after_video(), inputs])
            ready = self.cache.answering(self.progress.position, self._prefill)
            self._check_context(ready.taken, len(inputs))
            room = model.context - ready.taken
            answer = Answer(model, ready.cache, inputs, ready.position, room)
            self.retrieved = ready.cache.retrieved
            return answer

    def fork(self) -> Stream:
        """Return a stream that starts with what this one holds."""
        other = Stream(self._settings, self._pruner.copy())
        other.progress = self.progress
        other.cache = self.cache.fork()
        other._shares = True
        return other

    def reset(self) -> None:
        """Forget everything."""
        self._tower.restart()
        self._pruner.reset()
        self.cache = self._settings.open()
        self.progress, self.retrieved, self._shares = Progress(), (), False

    def release(self) -> None:
        """Give the tower back."""
        self._tower.release()

    @property
    def _before(self) -> list[int]:
        """The tokens before the next frame: the prompt's beginning, before the first one."""
        return [] if self.progress.frames else self._settings.before

    def _reserve(self, counts: list[int]) -> None:
        """Refuse frames that keep these numbers of tokens, if they don't fit."""
        blocks = [len(self._before), *counts]
        if self._settings.positions == "contiguous":
            self._check_positions(blocks)
        self.cache.reserve(blocks)

    def _check_positions(self, counts: list[int]) -> None:
        """Refuse blocks that take these numbers of positions, if the context has no room."""
        after, count = self.cache.span(self.progress.position, counts), sum(counts)
        self._check_context(max(after - count, 0), min(after, count))

    def _check_context(self, taken: int, more: int) -> None:
        context = self._settings.model.context
        if taken + more > context:
            raise MemoryFullError(
                f"the model's context has {context} positions, of which {taken} are taken and "
                f"{more} more are needed: nothing was lost. Reset the session, or keep fewer "
                "tokens with positions='contiguous'"
            )

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Undo what was done to the stream if it is not finished."""
        progress, pruner = self.progress, self._pruner.copy()
        saved = self.cache.save()
        try:
            yield
        except BaseException:
            self.progress, self._pruner = progress, pruner
            self._tower.restart()
            self.cache.restore(saved)
            raise

    def _keep(self, frames: Tensor, clock: _Clock) -> list[KeptFrame]:
        """Run the tower and the Pruner; return what is kept of each frame."""
        settings, like = self._settings, self._settings.model.pixels_like
        kept: list[KeptFrame] = []
        waiting: list[Tensor] = []
        taken = self.progress.frames
        for part in frames.split(FRAMES_AT_ONCE):
            pixels = settings.processor.pixels(part.to(like.device)).to(like.dtype)
            clock.lap("preprocess")
            tokens = self._tower.encode(pixels)
            checks.check_tokens(tokens, taken)
            taken += len(tokens)
            clock.lap("tower")
            if self._pruner.whole_calls:
                waiting.append(tokens)
                continue
            kept += self._pruner.keep(tokens)
            clock.lap("prune")
        if waiting:
            kept = self._pruner.keep(torch.cat(waiting))
            clock.lap("prune")
        return kept

    def _prefill(self, frames: Sequence[KeptFrame], position: int, cache: SessionCache) -> int:
        """Write kept tokens into a cache; return the position after them."""
        blocks: list[KeptFrame | Tensor] = list(frames)
        if position == 0:
            blocks.insert(0, self._settings.model.embed(self._settings.before))
        while blocks:
            counts = [len(block if isinstance(block, Tensor) else block.index) for block in blocks]
            together, position = cache.make_room(counts, position)
            position = self._write(blocks[:together], position, cache)
            del blocks[:together]
        return position

    def _write(
        self, blocks: Sequence[KeptFrame | Tensor], position: int, cache: SessionCache
    ) -> int:
        """Write text and kept tokens that go through the LLM at once."""
        settings, model = self._settings, self._settings.model
        inputs, places = [], []
        for block in blocks:
            if isinstance(block, Tensor):
                inputs.append(block)
                places.append(model.text_positions(position, len(block)))
                position += len(block)
                continue
            count = len(block.index)
            inputs.append(block.tokens.to(model.embedding.weight))
            if settings.positions == "kept":
                places.append(model.frame_positions(position, block.index))
                position += model.tokens_per_frame
            else:
                places.append(model.text_positions(position, count))
                position += count
        for part, where in zip(
            torch.cat(inputs).split(PREFILL_AT_ONCE),
            torch.cat(places, dim=1).split(PREFILL_AT_ONCE, dim=1),
            strict=True,
        ):
            # A rule of one's own may keep nothing of a frame.
            if len(part):
                model.run(part, where, cache)
        return position


class _Clock:
    """Seconds of each stage; a GPU finishes one before the next is timed."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._start = self._now()

    def lap(self, stage: str) -> None:
        now = self._now()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._start
        self._start = now

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
