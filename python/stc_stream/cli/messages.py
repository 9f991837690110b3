"""What `stc` says at standard error, and how a command ends with a message."""

from __future__ import annotations

from contextlib import suppress
from typing import NoReturn

import click

from stc_stream.report.terminal import printable

_LONGEST = 600


def fail(message: str) -> NoReturn:
    raise click.ClickException(message)


def say(message: str) -> None:
    # One line, whatever a file name or a library's message has in it; its remedy is at the end.
    line = printable(" ".join(message.split()))
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"
    # Where standard error fails too, the exit code is all that is left.
    with suppress(OSError):
        click.echo(line, err=True)


def why(error: OSError) -> str:
    reason = error.strerror or str(error)
    return reason[:1].lower() + reason[1:]


def no_output(failure: OSError) -> str:
    return f"standard output cannot be written ({why(failure)}): send it elsewhere"


def as_option(message: str) -> str:
    # The library's settings are named like the options: "update_ratio must be …".
    name, _, rest = message.partition(" ")
    return f"--{name.replace('_', '-')} {rest}"
