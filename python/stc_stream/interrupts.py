"""Ctrl-C, `kill` and a terminal that is closed: how they end a command."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

_NOTICE = b"stc: writing what there is; once more leaves it unwritten\n"


class Interrupts:
    """Ends a run at the first signal, and lets it write what it came to in spite of a second.

    The first raises `KeyboardInterrupt`. The next one, or the first after `finish`, is only
    answered with a line, so that it costs no file; one more raises again, since a pipe that nobody
    reads would hold the command for ever. What is ignored (by `nohup`, say) stays ignored.
    """

    def __init__(self) -> None:
        self._received = 0
        self._before: dict[int, Any] = {}
        self._part: Callable[[], object] | None = None

    def __enter__(self) -> Interrupts:
        ends = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL}
        ends["SIGHUP"] = signal.SIG_DFL
        if threading.current_thread() is threading.main_thread():
            for name, usual in ends.items():
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is usual:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def finish(self) -> None:
        """From here on there is nothing to stop, only something to write."""
        self._received = max(self._received, 1)

    @contextmanager
    def ending_a_part(self, end: Callable[[], object]) -> Iterator[None]:
        """Inside, the first Ctrl-C calls `end`, and ends nothing else; one more ends the run."""
        self._part = end
        try:
            yield
        finally:
            self._part = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._part is not None:
            end, self._part = self._part, None
            end()
            return
        self._received += 1
        if self._received != 2:
            raise KeyboardInterrupt
        # Not through a stream, which may be in the middle of a write.
        with suppress(OSError):
            os.write(2, _NOTICE)
