"""What an evaluation opens and lets go of again."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import TypeVar

Self = TypeVar("Self", bound="Opened")


class Opened:
    """What is open until `close`, or until its context is left."""

    def __init__(self) -> None:
        self._open = ExitStack()

    def close(self) -> None:
        """Let go of everything."""
        self._open.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
