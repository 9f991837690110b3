"""What the caches of all policies that keep keys and values share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from stc_stream.session.memory.layer import PreallocatedLayer
from stc_stream.session.memory.policy import SessionCache

if TYPE_CHECKING:
    from typing_extensions import Self


class LayeredCache(SessionCache):
    """A cache whose layers are `PreallocatedLayer`s, all in the same state."""

    def __init__(self, layers: Sequence[PreallocatedLayer]) -> None:
        super().__init__(layers=[*layers])

    def save(self) -> Any:
        """Return each layer's state."""
        return [layer.save() for layer in self._own]

    def restore(self, saved: Any) -> None:
        """Take each layer back to a state."""
        for layer, state in zip(self._own, saved, strict=True):
            layer.restore(state)

    def fork(self) -> SessionCache:
        """Return a cache that starts with what this one holds, and copies no keys."""
        return self._forked(may_borrow=False)

    def borrow(self) -> SessionCache:
        """Return a fork that writes behind the stream's tokens as long as nobody else does."""
        return self._forked(may_borrow=True)

    def own(self) -> None:
        """Copy what a fork shares into memory of its own, once."""
        for layer in self._own:
            layer.own()

    @property
    def bytes_device(self) -> int:
        """Bytes of the keys and values held."""
        return sum(layer.bytes_held for layer in self._own)

    @property
    def bytes_host(self) -> int:
        """None lie in host memory (0)."""
        return 0

    @property
    def bytes_reserved(self) -> int:
        """Bytes allocated, used or not."""
        return sum(layer.bytes_reserved for layer in self._own)

    @property
    def _own(self) -> list[PreallocatedLayer]:
        return cast("list[PreallocatedLayer]", self.layers)

    def _forked(self, may_borrow: bool) -> Self:
        other = copy.copy(self)
        other.layers = [layer.fork(may_borrow) for layer in self._own]
        return other
