"""What a command is run with."""

from __future__ import annotations

from dataclasses import dataclass

from stc_stream.cli.messages import fail, no_output
from stc_stream.interrupts import Interrupts
from stc_stream.report.terminal import StandardOutput


@dataclass
class Session:
    """What a command is run with.

    Attributes:
        output: this process's standard output.
        interrupts: what ends the run.
        writes_files: the command leaves files, whether or not anybody reads its output.
    """

    output: StandardOutput
    interrupts: Interrupts
    writes_files: bool = False

    def is_excused(self, failure: OSError) -> bool:
        """Tell whether an output that failed is none that anybody waits for."""
        unwanted = self.output.closed_at_start and self.writes_files
        return unwanted or isinstance(failure, BrokenPipeError)

    def require_somewhere(self) -> None:
        """End a run whose output can't be written before it takes its time, unless it has files."""
        failure = self.output.failure
        if failure is None or self.writes_files:
            return
        if isinstance(failure, BrokenPipeError):
            raise failure
        fail(no_output(failure))
