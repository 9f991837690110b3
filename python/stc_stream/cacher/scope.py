"""What holds for a Cacher in one thread or asyncio task: its context managers, and its forward."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, NamedTuple

from stc_stream.cacher.forward import Forward
from stc_stream.cacher.modality import Modality
from stc_stream.cacher.record import Recording


class Scope(NamedTuple):
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


_NOWHERE = Scope()

# One variable for all Cachers: a variable of each one's own would never be collected.
_SCOPES: ContextVar[Mapping[int, Scope]] = ContextVar("stc_cachers", default=MappingProxyType({}))


class Scopes:
    """The scopes of one Cacher, in whichever thread or task it is asked."""

    @property
    def current(self) -> Scope:
        """What holds in this thread or task."""
        return _SCOPES.get().get(id(self), _NOWHERE)

    def changed(self, **changes: Any) -> AbstractContextManager[None]:
        """Have other values of these fields inside."""
        return _Changed(self, changes)


class _Changed:
    """Other values of some fields, entered twice a frame: a generator would take thrice as long."""

    def __init__(self, scopes: Scopes, changes: dict[str, Any]) -> None:
        self._scopes = scopes
        self._changes = changes

    def __enter__(self) -> None:
        scopes = self._scopes
        scope = scopes.current._replace(**self._changes)
        self._token = _SCOPES.set(MappingProxyType({**_SCOPES.get(), id(scopes): scope}))

    def __exit__(self, *error: object) -> None:
        _SCOPES.reset(self._token)
