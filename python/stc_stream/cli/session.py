"""What a command is run with."""

from __future__ import annotations

from dataclasses import dataclass

from stc_stream.interrupts import Interrupts
from stc_stream.report.terminal import StandardOutput


@dataclass(frozen=True)
class Session:
    """What a command is run with.

    Attributes:
        output: this process's standard output.
        interrupts: what ends the run.
    """

    output: StandardOutput
    interrupts: Interrupts
