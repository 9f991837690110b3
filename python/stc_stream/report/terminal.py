"""What is printed: as it can be read, and so that a failing output stops no run."""

from __future__ import annotations

import errno
import os
import re
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Control characters, line and paragraph separators, and what turns the direction of writing.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_UNBOUND = 10_000


def printable(text: object) -> str:
    r"""Return a text with what a terminal would act upon written out: a line break as ``\n``."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], str(text))


def print_table(console: Console, table: Table) -> None:
    """Print a table whose cells fold between words and never within one, a number least of all.

    Where it is too narrow for that, columns move together; at last lines go beyond its edge.
    """
    from rich.cells import cell_len
    from rich.measure import Measurement

    cells = [[str(cell) for cell in (column.header, *column.cells)] for column in table.columns]
    least = [max(cell_len(word) for cell in each for word in [*cell.split(), ""]) for each in cells]
    widths = [max(map(cell_len, each)) for each in cells]

    def excess() -> int:
        for column, width in zip(table.columns, widths, strict=True):
            column.min_width = column.max_width = width
        unbound = console.options.update(width=_UNBOUND)
        return Measurement.get(console, unbound, table).maximum - console.width

    if excess() > sum(widths) - sum(least):
        table.padding = 0
    while excess() > 0 and widths != least:
        slack = [place for place, width in enumerate(widths) if width > least[place]]
        widths[max(slack, key=widths.__getitem__)] -= 1
    console.print(table, crop=False)


def some(count: int, most: int) -> list[int]:
    """Return at most `most` of the places below `count`, evenly spread, with both ends."""
    shown = min(count, most)
    return [round(place * (count - 1) / max(shown - 1, 1)) for place in range(shown)]


class StandardOutput:
    """Standard output whose failing raises nothing: the rest is dropped, and why is kept.

    Args:
        stream: what to write to; None: standard output is closed.

    Attributes:
        closed_at_start: there was none from the beginning.
        failure: why something could not be written; None: all was.
        optional: the command leaves files, whether or not anybody reads its output.
    """

    def __init__(self, stream: IO[str] | None) -> None:
        self.closed_at_start = stream is None
        self.failure: OSError | None = None
        self.optional = False
        if stream is None:
            self.failure = OSError(errno.EBADF, "It is closed")
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Write what was held back, or drop it."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    @property
    def unexcused(self) -> OSError | None:
        """The failure, unless it is of an output that nobody waits for."""
        unwanted = self.closed_at_start and self.optional
        return None if unwanted or isinstance(self.failure, BrokenPipeError) else self.failure

    def _give_up(self, error: OSError) -> None:
        self.failure = self.failure or error
        # What is still held back goes nowhere; the interpreter must not trip over it at exit.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)


def hold_closed_descriptors() -> None:
    """Keep the numbers of closed standard streams from going to files that are opened later."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is this one. Writing to it fails, as before.
            os.open(os.devnull, os.O_RDONLY)
