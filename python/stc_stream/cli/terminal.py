"""What commands print alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stc_stream.report.terminal import printable

if TYPE_CHECKING:
    from stc_stream.towers.load import VisionModel


def tower_words(tower: VisionModel, layers: str = "") -> str:
    parts = [printable(tower.name), *([layers] if layers else []), tower.weights]
    return f"{', '.join(parts)}, on {tower.device}"
