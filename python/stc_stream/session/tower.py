"""The tower of a model, as the sessions on that model share it."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

from torch import Tensor, nn

from stc_stream.cacher import Cacher, CacherConfig, attach_cacher
from stc_stream.cacher.part import TowerPart
from stc_stream.session.models import VideoModel

FRAMES_AT_ONCE = 16
"""Frames to give a tower together, so that long videos need no more memory than short ones."""


class TowerLease:
    """A session's use of its model's tower: a stream of its own there, until `release`.

    Sessions on one model share the tower and its Cacher, whose settings must be the same; those
    without a Cacher run densely beside it.

    Args:
        model: the session's model.
        cacher: settings of a Cacher, another part for the tower, or None.

    Raises:
        TypeError: `cacher` is none of these; a tower that can't be read.
        ValueError: another session on the model has another `cacher`.
    """

    def __init__(self, model: VideoModel, cacher: CacherConfig | TowerPart | None) -> None:
        if isinstance(cacher, type) or not (cacher is None or hasattr(cacher, "attach")):
            raise TypeError(
                "cacher must be a CacherConfig, an object with attach(tower), or None, but is "
                f"{cacher!r}"
            )
        self.cacher = cacher
        self.stream = f"session {next(_NUMBERS)}"
        self._model = model
        with _LOCK:
            shared = _SHARED.setdefault(model.tower, _SharedTower())
            shared.join(model, cacher)
        self._shared = shared
        self._finalizer = weakref.finalize(self, _leave, shared, cacher, self.stream)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the tokens of frames of this session's stream, [P, T, D]."""
        names = None if self.cacher is None else [self.stream] * self._patches(pixels)
        return self._shared.run(self._model.encode, pixels, names)

    def encode_aside(self, pixels: Tensor) -> Tensor:
        """Return the tokens of frames that the stream does not see, densely, [P, T, D]."""
        aside = None if self.cacher is None else [f"{self.stream}, aside"] * self._patches(pixels)
        return self._shared.run_aside(self._model.encode, pixels, aside)

    def restart(self) -> None:
        """Forget the stream's past: its next frame is a refresh."""
        self._shared.forget(self.stream)

    def release(self) -> None:
        """Give the tower back; again is harmless. The last one takes the Cacher off."""
        self._finalizer()

    def _patches(self, pixels: Tensor) -> int:
        return len(pixels) // self._model.frames_per_patch


class _SharedTower:
    """What is on one tower now, and for how many sessions."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._running = False
        self._leaving: list[tuple[CacherConfig | TowerPart | None, str]] = []
        self._users: list[CacherConfig | TowerPart | None] = []
        self._attached: AbstractContextManager[Any] | None = None
        self._part: Any = None

    def join(self, model: VideoModel, cacher: CacherConfig | TowerPart | None) -> None:
        """Count a session, and attach its Cacher if it is the first that has one."""
        with self._busy():
            other = next((user for user in self._users if user is not None), None)
            exclusive = not isinstance(cacher, CacherConfig | None)
            if (exclusive and self._users) or not isinstance(other, CacherConfig | None):
                raise ValueError(
                    "cacher must be a CacherConfig or None where several sessions share a model: "
                    "an object with attach(tower) has the tower to itself"
                )
            if cacher is not None and other is not None and cacher != other:
                raise ValueError(
                    f"cacher must be {other} or None, as in the other sessions on this model, but "
                    f"is {cacher}"
                )
            if cacher is not None and other is None:
                self._attached = _attached(model, cacher)
                self._part = self._attached.__enter__()
            self._users.append(cacher)

    def leave(self, cacher: CacherConfig | TowerPart | None, stream: str) -> None:
        """Forget a session and its stream, and detach the Cacher after the last that has one."""
        with self._lock:
            if self._running:
                # A session is collected while another one joins, or in the middle of its forward.
                self._leaving.append((cacher, stream))
                return
            self._users.remove(cacher)
            self.forget(stream)
            if self._attached is not None and not any(user is not None for user in self._users):
                attached, self._attached, self._part = self._attached, None, None
                attached.__exit__(None, None, None)

    def run(
        self, encode: Callable[[Tensor], Tensor], pixels: Tensor, names: list[str] | None
    ) -> Tensor:
        """Run the tower, one session at a time."""
        # Not every version of transformers can collect hidden states in two threads at once.
        with self._busy(), self._scope(names):
            return encode(pixels)

    def run_aside(
        self, encode: Callable[[Tensor], Tensor], pixels: Tensor, names: list[str] | None
    ) -> Tensor:
        """Run the tower on frames of no stream, as another part runs a stream's first ones."""
        if names is None or isinstance(self._part, Cacher) or not hasattr(self._part, "streams"):
            return self.run(encode, pixels, None)
        with self._busy():
            try:
                with self._part.streams(names):
                    return encode(pixels)
            finally:
                self._part.reset(*set(names))

    def forget(self, stream: str) -> None:
        """Have the Cacher forget a stream, or another part, which has the tower to itself, all."""
        if isinstance(self._part, Cacher):
            # Not known where it has had no frame, or was evicted.
            with suppress(ValueError):
                self._part.reset(stream)
        elif hasattr(self._part, "reset"):
            self._part.reset()

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """Have the tower alone; who leaves meanwhile has left afterwards."""
        with self._lock:
            self._running = True
            try:
                yield
            finally:
                self._running = False
                while self._leaving:
                    self.leave(*self._leaving.pop())

    def _scope(self, names: list[str] | None) -> AbstractContextManager[Any]:
        if not isinstance(self._part, Cacher):
            return nullcontext()
        return self._part.paused() if names is None else self._part.streams(names)


def _attached(model: VideoModel, cacher: CacherConfig | TowerPart) -> AbstractContextManager[Any]:
    if isinstance(cacher, CacherConfig):
        return attach_cacher(model.model, cacher)
    return cacher.attach(model.tower)


def _leave(shared: _SharedTower, cacher: CacherConfig | TowerPart | None, stream: str) -> None:
    shared.leave(cacher, stream)


_NUMBERS = itertools.count()
_LOCK = threading.RLock()
_SHARED: weakref.WeakKeyDictionary[nn.Module, _SharedTower] = weakref.WeakKeyDictionary()
