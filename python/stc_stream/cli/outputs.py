"""What a command writes: seen to before its run, written after it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from stc_stream.cli.messages import fail, no_output, why
from stc_stream.report.target import PAGE, check_file, is_standard_output, prepare_report
from stc_stream.report.terminal import StandardOutput, printable

if TYPE_CHECKING:
    from rich.console import Console

Result = TypeVar("Result")


@dataclass(frozen=True)
class OutputFile(Generic[Result]):
    """A file that an option asks for.

    Attributes:
        option: such as ``--json``.
        kind: what messages call it.
        path: what the option was given.
        file: what is written; of a page, a file in the folder `path`.
        write: writes a result to `path` and returns `file`; raises OSError.
        check: sees that it can be written; raises OSError.
    """

    option: str
    kind: str
    path: Path
    file: Path
    write: Callable[[Result, Path], Path]
    check: Callable[[Path], None]


def page_file(
    path: Path | None, write: Callable[[Result, Path], Path]
) -> OutputFile[Result] | None:
    """Return the page of `--report`; None: it was not asked for."""
    if path is None:
        return None
    return OutputFile("--report", "report", path, path / PAGE, write, prepare_report)


def json_file(
    path: Path | None, document: Callable[[Result], Mapping[str, Any] | Sequence[Any]]
) -> OutputFile[Result] | None:
    """Return the file of `--json` with the document of a result; None: it was not asked for."""
    if path is None:
        return None

    def write(result: Result, path: Path) -> Path:
        from stc_stream.report.document import write_document

        return write_document(document(result), path)

    return OutputFile("--json", "JSON", path, path, write, check_file)


def figure_file(
    path: Path | None, write: Callable[[Result, Path], Path]
) -> OutputFile[Result] | None:
    """Return the file of `--figure`; None: it was not asked for."""
    if path is None:
        return None
    if path.suffix not in (".svg", ".png"):
        fail(f"--figure must end in .svg or .png, but is {path}")
    return OutputFile("--figure", "figure", path, path, write, check_file)


class Outputs(Generic[Result]):
    """What a command writes: standard output, and the files that it was asked for.

    Args:
        standard_output: this process's.
        files: in the order in which they are checked: a page makes the folder that others may be
            in. None stands for one that was not asked for.
        video: what is read, and may not be overwritten: a file or a folder of images.

    Raises:
        click.ClickException: one of them cannot be written, or would overwrite another or the
            video; or nothing can be written at all.
    """

    def __init__(
        self,
        standard_output: StandardOutput,
        *files: OutputFile[Result] | None,
        video: Path | None = None,
    ) -> None:
        self._standard_output = standard_output
        self._files = [file for file in files if file is not None]
        standard_output.optional = bool(self._files)
        for file in self._files:
            if video is not None and _overwrites(file.file, video):
                which = video if file.file != file.path else f"({file.file})"
                fail(
                    f"{file.option} would overwrite the video {which}: choose another {file.option}"
                )
        for first, second in combinations(self._files, 2):
            if _same(first.file, second.file):
                kind = "page" if first.file != first.path else "file"
                fail(
                    f"{second.option} would overwrite the {kind} of {first.option}, {first.file}: "
                    f"choose another {second.option}"
                )
        for file in self._files:
            try:
                file.check(file.path)
            except OSError as error:
                fail(
                    f"no {file.kind} can be written to {file.path} ({why(error)}): "
                    f"choose another {file.option}"
                )
        self.require_somewhere()

    @cached_property
    def console(self) -> Console:
        """A console for standard output; silent where a file is written there."""
        from rich.console import Console

        quiet = any(is_standard_output(file.file) for file in self._files)
        return Console(markup=False, emoji=False, quiet=quiet)

    def begin(self, words: str) -> None:
        """Print the first line, and end a run that would leave nothing before it takes its time."""
        self.console.print(words, highlight=False, soft_wrap=True)
        sys.stdout.flush()
        self.require_somewhere()

    def require_somewhere(self) -> None:
        """End a command whose standard output can't be written, unless it leaves files.

        Raises:
            BrokenPipeError: whoever read it has gone.
            click.ClickException: it cannot be written for another reason.
        """
        failure = self._standard_output.failure
        if failure is None or self._files:
            return
        if isinstance(failure, BrokenPipeError):
            raise failure
        fail(no_output(failure))

    def write(self, result: Result) -> None:
        """Write all files that can be, then fail with those that could not.

        Numbers come first: they take no time, and are most missed if the rest is stopped.
        """
        missing = []
        stopped = False
        for file in sorted(self._files, key=lambda file: file.option != "--json"):
            place = printable(file.path)
            try:
                if not stopped:
                    written = printable(file.write(result, file.path))
                    self.console.print(f"{file.kind}: {written}", highlight=False, soft_wrap=True)
            except BrokenPipeError:
                # Whoever reads it has seen enough.
                continue
            except OSError as error:
                missing.append(
                    f"the {file.kind} could not be written to {place} ({why(error)}): make room, "
                    "or choose another place"
                )
            except KeyboardInterrupt:
                stopped = True
            if stopped:
                missing.append(f"stopped before the {file.kind} was written to {place}")
        if missing:
            fail("; ".join(missing))


def _overwrites(file: Path, video: Path) -> bool:
    from stc_stream.video.folder import SUFFIXES

    is_image = file.suffix.lower() in SUFFIXES and file.exists()
    return _same(file, video) or (is_image and _same(file.parent, video))


def _same(one: Path, other: Path) -> bool:
    try:
        return one.resolve() == other.resolve() or one.samefile(other)
    except (OSError, RuntimeError):
        return False
