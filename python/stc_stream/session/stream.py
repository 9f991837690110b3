"""A stream's way into the LLM: what was fed, what is held, and where the next token goes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stc_stream.session import checks
from stc_stream.session.answer import Answer
from stc_stream.session.memory import (
    KeptFrame,
    MemoryFullError,
)
from stc_stream.session.numbering import Place, TemporalPatch
from stc_stream.session.pruning import SessionPruner
from stc_stream.session.results import Fed
from stc_stream.session.settings import Settings
from stc_stream.session.tower import FRAMES_AT_ONCE, TowerLease

FRAMES_A_SECOND = 24
"""Of frames without timestamps, as transformers' processors take a video that says nothing."""


@dataclass(frozen=True, eq=False)
class Waiting:
    """Frames that are too few for a temporal patch: pixels [n, 3, h, w], and times in seconds."""

    pixels: Tensor | None = None
    times: tuple[float, ...] = ()


@dataclass(frozen=True)
class Progress:
    """How far a stream is.

    Attributes:
        frames: fed, those that wait included.
        patches: temporal patches that the memory took.
        tokens_seen: tokens of these.
        place: where the next token goes.
        timestamp: the last one given.
        time: of the last frame, given or not.
        size: height and width of a frame as the tower takes it, from the first one on.
        waiting: frames for the next temporal patch.
    """

    frames: int = 0
    patches: int = 0
    tokens_seen: int = 0
    place: Place = field(default_factory=Place)
    timestamp: float | None = None
    time: float | None = None
    size: tuple[int, int] | None = None
    waiting: Waiting = field(default_factory=Waiting)


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
        self._padded: list[KeptFrame] | None = None
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
        given = checks.check_timestamps(timestamps, len(frames), progress.timestamp)
        size = progress.size or self._settings.processor.pixels.size_of(*frames.shape[1:3])
        times = given or self._times(len(frames))
        patches = self._settings.patches(size, (*progress.waiting.times, *times))
        tokens = math.prod(model.grid(size))
        self._pruner.check_budget(tokens)
        if self._settings.positions == "kept":
            self._check_positions(patches, [tokens] * len(patches))
        # Before the tower, if possible: what has no room then costs nothing.
        budget = self._pruner.budget(tokens)
        expected = None if budget is None else [budget] * len(patches)
        if expected is not None:
            self._reserve(patches, expected)
        if self._shares:
            self.cache.own()
            self._shares = False
        clock = _Clock(model.device)
        with torch.no_grad(), self._all_or_nothing():
            found, waiting = self._keep(frames, size, clock)
            kept = [
                replace(frame, patch=patch) for frame, patch in zip(found, patches, strict=True)
            ]
            counts = [len(frame.index) for frame in kept]
            if counts != expected:
                self._reserve(patches, counts)
            place = progress.place
            if kept:
                place = self.cache.take(kept, place, self._settings.prefill)
            clock.lap("prefill")
            self._padded = None
            self.progress = Progress(
                progress.frames + len(frames),
                progress.patches + len(patches),
                progress.tokens_seen + tokens * len(patches),
                place,
                given[-1] if given else progress.timestamp,
                times[-1],
                size,
                Waiting(waiting, (*progress.waiting.times, *times)[len(patches) * self._a_patch :]),
            )
        index = tuple(frame.index for frame in kept)
        seen = tokens * len(patches)
        return Fed(len(frames), seen, sum(map(len, index)), index, clock.seconds)

    def ask(self, question: str) -> Answer:
        """Put a question behind the frames so far, in a fork."""
        settings, model, watched = self._settings, self._settings.model, self.progress.frames > 0
        prompt = model.prompt(settings.processor, question, video=watched)
        if watched and prompt.before != settings.before:
            raise ValueError("the chat template must put a video before the question")
        with torch.no_grad():
            text = model.embed(prompt.after if watched else prompt.before)
            if watched:
                text = torch.cat([model.after_video(), text])
            padding = self._padding()
            ready = self.cache.answering(self.progress.place, self._settings.prefill, len(padding))
            before = self._before if padding else []
            inputs, positions, place = self._settings.laid_out(before, padding, ready.place)
            more = place.reach - ready.place.reach + len(text)
            self._check_context(ready.taken, more)
            answer = Answer(
                model,
                ready.cache,
                torch.cat([inputs, text]),
                torch.cat([positions, model.text_positions(place.text, len(text))], dim=1),
                place.text + len(text),
                model.context - ready.taken - more,
            )
            self.retrieved = ready.cache.retrieved
            return answer

    def fork(self) -> Stream:
        """Return a stream that starts with what this one holds."""
        other = Stream(self._settings, self._pruner.copy())
        other.progress, other._padded = self.progress, self._padded
        other.cache = self.cache.fork()
        other._shares = True
        return other

    def reset(self) -> None:
        """Forget everything."""
        self._tower.restart()
        self._pruner.reset()
        self.cache = self._settings.open()
        self.progress, self.retrieved = Progress(), ()
        self._shares, self._padded = False, None

    def release(self) -> None:
        """Give the tower back."""
        self._tower.release()

    @property
    def _before(self) -> list[int]:
        """The tokens before the next frame: the prompt's beginning, before the first one."""
        return [] if self.progress.patches else self._settings.before

    @property
    def _a_patch(self) -> int:
        return self._settings.model.frames_per_patch

    def _times(self, count: int) -> list[float]:
        """Return times of frames that have none: at an even pace behind the last one."""
        last = self.progress.time
        first = 0.0 if last is None else last + 1 / FRAMES_A_SECOND
        return [first + number / FRAMES_A_SECOND for number in range(count)]

    def _reserve(self, patches: Sequence[TemporalPatch], counts: list[int]) -> None:
        """Refuse temporal patches that keep these numbers of tokens, if they don't fit."""
        if self._settings.positions == "contiguous":
            self._check_positions(patches, counts)
        if patches:
            texts = [patch.text for patch in patches]
            self.cache.reserve([len(self._before), *map(sum, zip(counts, texts, strict=True))])

    def _check_positions(self, patches: Sequence[TemporalPatch], counts: Sequence[int]) -> None:
        """Refuse temporal patches that keep so many, if the context has no positions for them."""
        if not patches:
            return
        blocks, now = [*zip(patches, counts, strict=True)], self.progress.place
        end = self._settings.layout.place(blocks, now.after_text(len(self._before)))
        count = end.reach - now.reach
        after = self.cache.span(end, blocks, count)
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

    def _keep(
        self, frames: Tensor, size: tuple[int, int], clock: _Clock
    ) -> tuple[list[KeptFrame], Tensor | None]:
        """Run the tower and the Pruner.

        Returns:
            What is kept of each temporal patch, and the pixels of frames that wait for the next.
        """
        settings, like = self._settings, self._settings.model.pixels_like
        kept: list[KeptFrame] = []
        together: list[Tensor] = []
        waiting = self.progress.waiting.pixels
        taken = self.progress.frames - len(self.progress.waiting.times)
        for part in frames.split(FRAMES_AT_ONCE):
            pixels = settings.processor.pixels(part.to(like.device), size).to(like.dtype)
            if waiting is not None:
                pixels = torch.cat([waiting, pixels])
            whole = len(pixels) // self._a_patch * self._a_patch
            waiting = pixels[whole:].clone() if whole < len(pixels) else None
            clock.lap("preprocess")
            if not whole:
                continue
            tokens = self._tower.encode(pixels[:whole])
            checks.check_tokens(tokens, taken, self._a_patch)
            taken += whole
            clock.lap("tower")
            if self._pruner.whole_calls:
                together.append(tokens)
                continue
            kept += self._pruner.keep(tokens)
            clock.lap("prune")
        if together:
            kept = self._pruner.keep(torch.cat(together))
        # Also where all frames wait, and neither has been run.
        for stage in ("tower", "prune"):
            clock.lap(stage)
        return kept, waiting

    def _padding(self) -> list[KeptFrame]:
        """Return what is kept of what waits, its last frame repeated as the processor does.

        The stream sees nothing of it: the tower runs densely, and a copy of the Pruner chooses.
        """
        progress, waiting = self.progress, self.progress.waiting
        if waiting.pixels is None or progress.size is None:
            return []
        if self._padded is None:
            missing = self._a_patch - len(waiting.times)
            pixels = torch.cat([waiting.pixels, waiting.pixels[-1:].expand(missing, -1, -1, -1)])
            tokens = self._tower.encode_aside(pixels)
            checks.check_tokens(tokens, progress.frames - len(waiting.times), self._a_patch)
            times = (*waiting.times, *waiting.times[-1:] * missing)
            (patch,) = self._settings.patches(progress.size, times)
            (kept,) = self._pruner.copy().keep(tokens)
            self._padded = [replace(kept, patch=patch)]
        return self._padded


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
