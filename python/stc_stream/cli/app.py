"""The `stc` command: exit code 0, or 2 with one line that says what was wrong and what to do."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module, metadata

import click

from stc_stream.cli.messages import no_output, say
from stc_stream.cli.options import CONTEXT
from stc_stream.cli.session import Session
from stc_stream.interrupts import Interrupts
from stc_stream.report.terminal import StandardOutput, hold_closed_descriptors

# Each is the module of its name here, with a click command in a function of its name.
_COMMANDS = (
    "bench",
    "evaluate",
    "info",
    "stream",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `stc` command and return its exit code, 0 or 2.

    Args:
        arguments: what follows `stc`; None: those of this process.
    """
    hold_closed_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file's name may hold what the terminal's encoding lacks.
            stream.reconfigure(errors="replace")
    output = StandardOutput(sys.stdout)
    with redirect_stdout(output), Interrupts() as interrupts:
        session = Session(output, interrupts)
        try:
            code = stc.main(args=arguments, prog_name="stc", standalone_mode=False, obj=session)
            output.flush()
        except click.ClickException as error:
            return _failed(error.format_message())
        except (click.Abort, KeyboardInterrupt):
            return _failed("stopped before there was anything to report")
        except BrokenPipeError:
            return 0
    if output.unexcused:
        return _failed(no_output(output.unexcused))
    return code if isinstance(code, int) else 0


@click.group(invoke_without_command=True, context_settings=CONTEXT)
@click.option("--version", is_flag=True, help="Show the version and exit.")
@click.pass_context
def stc(context: click.Context, version: bool) -> None:
    """Streaming Token Compression: what it saves on a video and on this machine."""
    if version:
        click.echo(f"stc {metadata.version('stc-kernels')}")
    elif context.invoked_subcommand is None:
        click.echo(context.get_help())


for _name in _COMMANDS:
    stc.add_command(getattr(import_module(f"stc_stream.cli.{_name}"), _name))


def _failed(message: str) -> int:
    say(f"stc: {message}")
    return 2
