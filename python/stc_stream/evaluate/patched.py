"""What tower methods beside the Cacher have in common: forwards replaced, streams, a record."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType, TracebackType
from typing import Any, TypeVar

from torch import nn

from stc_stream.cacher import LayerRecord
from stc_stream.stream_names import DEFAULT_STREAM, check_names
from stc_stream.towers import TowerSpec, read_tower

Self = TypeVar("Self", bound="PatchedTower")


@dataclass
class FrameShares:
    """What became of each frame of the last batch, as `cacher.part.BatchRecord` has it."""

    whole: tuple[bool, ...] = ()
    share: tuple[float, ...] = ()
    layers: tuple[LayerRecord, ...] = ()


class PatchedTower:
    """A tower some of whose modules run a forward of the method's own, until the context is left.

    One thread runs it. A method that remembers something of a stream overrides `forget`.

    Args:
        model: a vision tower that can be read, or a model that holds exactly one.

    Attributes:
        tower: the tower as it was read.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tower: TowerSpec = read_tower(model)
        self._shares = FrameShares()
        self._names: tuple[Hashable, ...] | None = None
        self._patched: list[nn.Module] = []

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo()
        self.forget()

    @contextmanager
    def streams(self, names: Sequence[Hashable]) -> Iterator[None]:
        """Name the stream of each frame of the batches run inside, in time order within a stream.

        Raises:
            TypeError: a name that is not hashable, or compares by identity.
        """
        check_names(names)
        before, self._names = self._names, tuple(names)
        try:
            yield
        finally:
            self._names = before

    def reset(self, *streams: Hashable) -> None:
        """Forget these streams, or all when none is named."""
        check_names(streams)
        self.forget(*streams)

    @contextmanager
    def record(self) -> Iterator[FrameShares]:
        """Give what became of the last batch that ran inside."""
        before, self._shares = self._shares, FrameShares()
        try:
            yield self._shares
        finally:
            self._shares = before

    def note(self, whole: Sequence[bool], share: Sequence[float]) -> None:
        """Say of each frame of the batch whether it was computed whole, and what share of it."""
        self._shares.whole, self._shares.share = tuple(whole), tuple(share)

    def forget(self, *streams: Hashable) -> None:
        """Let go of what is remembered of these streams, or of all when none is named."""

    def replace_forward(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Have a module run another forward, on this instance alone.

        Raises:
            ValueError: it runs one that is not its class's already; nothing stays replaced then.
        """
        own = vars(module).get("forward")
        # transformers 5.0 leaves a module's own method there after collecting hidden states.
        if own is not None and own != MethodType(type(module).forward, module):
            self._undo()
            raise ValueError(
                f"the tower's {type(module).__name__} has a forward of its own already, of a "
                "Cacher or another method: detach that one first"
            )
        module.forward = forward
        self._patched.append(module)

    def names(self, frames: int) -> tuple[Hashable, ...]:
        """Return the stream of each frame of a batch of `frames`.

        Raises:
            ValueError: another number of names was given.
        """
        if self._names is None:
            return (DEFAULT_STREAM,) * frames
        if len(self._names) != frames:
            raise ValueError(
                f"streams must name each frame of the batch: {len(self._names)} names were given, "
                f"but the batch has {frames} frames"
            )
        return self._names

    def _undo(self) -> None:
        for module in self._patched:
            del module.forward
        self._patched = []
