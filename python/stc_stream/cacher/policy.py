"""Which frames are computed whole: what a policy of one's own is asked."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class StreamFrame:
    """A frame about to run, as a policy sees it.

    Attributes:
        stream: the stream's name.
        number: how many frames the stream has had before this one (t); 1 or more, since a frame
            without a reference is computed whole unasked.
        age: how many frames ago the reference was computed, 1 or more.
    """

    stream: Hashable
    number: int
    age: int
    _change: Callable[[], float]

    def changed(self) -> float:
        """Return the share of patches that changed since the reference, 0 to 1.

        A patch has changed when its pixels differ, on average, by more than a quarter of how much
        the reference frame's pixels differ from their mean. Asking about a reference in the same
        batch waits for the device.

        Raises:
            RuntimeError: the policy has no `watches_change = True`, so pixels are not kept; or the
                layers were called without the tower's patch embedding.
        """
        return self._change()


@runtime_checkable
class RefreshPolicy(Protocol):
    """Decides which frames are computed whole; of one's own: any object with `refreshes`.

    It is asked once a frame, in time order within a stream, for frames whose stream has a
    reference. A policy that asks `frame.changed()` has an attribute `watches_change = True`.
    """

    def refreshes(self, frame: StreamFrame) -> bool:
        """Say whether the frame is computed whole."""
        ...
