"""What commands print alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stc_stream.report.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from stc_stream.towers.load import VisionModel


def tower_words(tower: VisionModel, layers: str = "") -> str:
    parts = [printable(tower.name), *([layers] if layers else []), tower.weights]
    return f"{', '.join(parts)}, on {tower.device}"


def progress_bar(console: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
