"""What commands print alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stc_stream.report.target import is_standard_output
from stc_stream.report.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console

    from stc_stream.towers.load import VisionModel


def console_for(document: Path | None = None) -> Console:
    """Return a console for standard output; silent where a document goes there."""
    from rich.console import Console

    quiet = document is not None and is_standard_output(document)
    return Console(markup=False, emoji=False, quiet=quiet)


def tower_words(tower: VisionModel, layers: str = "") -> str:
    parts = [printable(tower.name), *([layers] if layers else []), tower.weights]
    return f"{', '.join(parts)}, on {tower.device}"
