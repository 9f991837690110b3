"""Charts as inline SVG that takes its ink from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stc_stream.report.drawing import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# matplotlib knows no CSS variables: it draws with these, which stand for nothing else.
_STAND_INS = {
    "#010203": "var(--ink)",
    "#010204": "var(--muted)",
    "#010205": "var(--line)",
    "#010206": "var(--dense)",
    "#010207": "var(--compressed)",
    "#010208": "var(--cut)",
}
INK, MUTED, LINE, DENSE, COMPRESSED, CUT = _STAND_INS
FONT = 11
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "stc",
    "font.size": FONT,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


def inline_chart(
    draw: Callable[[Axes], None], inches: float, label: str, along: str = "seconds"
) -> str:
    """Return a chart as an inline SVG.

    Args:
        draw: draws it into the axes.
        inches: how high it is; it is ten wide.
        label: what it shows, for those who can't see it.
        along: what its x axis is.
    """
    with new_figure((10, inches), _STYLE) as figure:
        axes = figure.add_subplot()
        axes.set_xlabel(along)
        axes.margins(x=0.015)
        draw(axes)
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for stand_in, variable in _STAND_INS.items():
        svg = svg.replace(stand_in, variable)
    svg = re.sub(r' width="[\d.]+pt"| height="[\d.]+pt"', "", svg, count=2)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
