"""The files that a command writes: seen to before its run, written after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stc_stream.cli.messages import fail, why
from stc_stream.report.target import check_file, prepare_report
from stc_stream.report.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console


def check_outputs(report: Path | None, document: Path | None, figure: Path | None) -> None:
    checks: list[tuple[str, str, Path | None, Callable[[Path], None]]] = [
        ("report", "--report", report, prepare_report),
        ("JSON", "--json", document, check_file),
        ("figure", "--figure", figure, check_file),
    ]
    for what, option, path, check in checks:
        try:
            if path is not None:
                check(path)
        except OSError as error:
            fail(f"no {what} can be written to {path} ({why(error)}): choose another {option}")


def same(one: Path, other: Path) -> bool:
    try:
        return one.resolve() == other.resolve() or one.samefile(other)
    except (OSError, RuntimeError):
        return False


@dataclass(frozen=True)
class Output:
    """A file to write: what to call it, where it goes, and what writes it and returns its path."""

    kind: str
    path: Path
    write: Callable[[], Path]


def write(outputs: Sequence[Output], console: Console) -> None:
    """Write all that can be, then fail with what could not."""
    missing = []
    stopped = False
    for output in outputs:
        place = printable(output.path)
        try:
            if not stopped:
                written = output.write()
                console.print(
                    f"{output.kind}: {printable(written)}", highlight=False, soft_wrap=True
                )
        except BrokenPipeError:
            # Whoever reads it has seen enough.
            continue
        except OSError as error:
            missing.append(
                f"the {output.kind} could not be written to {place} ({why(error)}): make room, or "
                "choose another place"
            )
        except KeyboardInterrupt:
            stopped = True
        if stopped:
            missing.append(f"stopped before the {output.kind} was written to {place}")
    if missing:
        fail("; ".join(missing))
