"""The `stc` command line: a module a command, and what they share."""

from stc_stream.cli.app import main

__all__ = ["main"]
