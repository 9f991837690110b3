"""`stc info`: what is installed and used here."""

from __future__ import annotations

import click

from stc_stream.cli.needs import kernels
from stc_stream.cli.options import CONTEXT
from stc_stream.cli.outputs import Outputs
from stc_stream.cli.session import Session


@click.command(context_settings=CONTEXT, short_help="Show what is installed and used here.")
@click.pass_obj
def info(session: Session) -> None:
    """Show versions, what was built, and which implementation each op uses on this machine."""
    outputs: Outputs[None] = Outputs(session.output)
    built = kernels().build_info()
    from stc_stream.report.info import info_table

    outputs.console.print(info_table(built))
