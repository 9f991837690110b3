"""What holds for a Cacher in one thread or asyncio task: its context managers, and its forward."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from stc_stream.cacher.forward import Forward
from stc_stream.cacher.modality import Modality
from stc_stream.cacher.record import Recording


@dataclass(frozen=True, eq=False)
class Scope:
    """What holds here and now.

    Attributes:
        streams: names of the rows; None: none were given.
        paused: whether the tower runs densely.
        recording: takes what the layers do; None: nothing does.
        forward: the forward that is running; None: none is.
        within: the tower's own method that the forward runs in.
        modality: what a whole model says the rows are; None: nothing.
    """

    streams: tuple[Hashable, ...] | None = None
    paused: bool = False
    recording: Recording | None = None
    forward: Forward | None = None
    within: Callable[..., Any] | None = None
    modality: Modality | None = None


# One variable for all Cachers: a variable of each one's own would never be collected.
_SCOPES: ContextVar[Mapping[int, Scope]] = ContextVar("stc_cachers", default=MappingProxyType({}))


class Scopes:
    """The scopes of one Cacher, in whichever thread or task it is asked."""

    @property
    def current(self) -> Scope:
        """What holds in this thread or task."""
        return _SCOPES.get().get(id(self), Scope())

    @contextmanager
    def changed(self, **changes: Any) -> Iterator[None]:
        """Have other values of these fields inside."""
        scope = replace(self.current, **changes)
        token = _SCOPES.set(MappingProxyType({**_SCOPES.get(), id(self): scope}))
        try:
            yield
        finally:
            _SCOPES.reset(token)
