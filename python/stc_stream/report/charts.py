"""Charts over time, as SVG that takes its ink from the page around it (light or dark)."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stc_stream.comparison import Fidelity, FrameNumbers

# matplotlib knows no CSS variables: it draws with these, which stand for nothing else.
_STAND_INS = {
    "#010203": "var(--ink)",
    "#010204": "var(--muted)",
    "#010205": "var(--line)",
    "#010206": "var(--dense)",
    "#010207": "var(--compressed)",
    "#010208": "var(--cut)",
}
_INK, _MUTED, _LINE, _DENSE, _COMPRESSED, _CUT = _STAND_INS
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "stc",
    "font.size": 11,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _LINE,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
}


def latency_chart(frames: Sequence[FrameNumbers]) -> str:
    """Return the tower's milliseconds over time, dense and compressed, as an inline SVG."""

    def draw(axes: Axes) -> None:
        times = [frame.time for frame in frames]
        dense = [frame.dense_ms for frame in frames]
        compressed = [frame.compressed_ms for frame in frames]
        axes.plot(times, dense, color=_DENSE, linewidth=1.6)
        axes.plot(times, compressed, color=_COMPRESSED, linewidth=1.6)
        axes.fill_between(times, compressed, dense, color=_COMPRESSED, alpha=0.1, linewidth=0)
        _mark(axes, frames, compressed)
        # One hiccup of the machine must not flatten all the rest.
        usual = float(np.percentile([*dense, *compressed], 95))
        top = max(1.3 * usual, 1e-3)
        axes.set_ylim(0, top)
        _above(axes, frames, top)
        axes.set_ylabel("ms a frame")

    return _chart(draw, 3.1, "Latency of the vision tower over time")


def cosine_chart(frames: Sequence[FrameNumbers]) -> str:
    """Return the cosine of compressed to dense features over time, as an inline SVG."""

    def draw(axes: Axes) -> None:
        times = [frame.time for frame in frames]
        cosine = [np.nan if frame.cosine is None else frame.cosine for frame in frames]
        axes.plot(times, cosine, color=_COMPRESSED, linewidth=1.6)
        _mark(axes, frames, cosine)
        lowest = min((value for value in cosine if np.isfinite(value)), default=0.0)
        axes.set_ylim(lowest - 0.08 * max(1 - lowest, 1e-3), 1 + 0.08 * max(1 - lowest, 1e-3))
        axes.set_ylabel("cosine to dense")

    return _chart(draw, 2.4, "Cosine of the compressed features to the dense ones over time")


def fidelity_chart(fidelity: Fidelity) -> str:
    """Return the cosine to dense by layer, a line for each age, as an inline SVG."""

    def draw(axes: Axes) -> None:
        shown = [place for place, age in enumerate(fidelity.ages) if age > 0]
        layers = range(1, len(fidelity.layers) + 1)
        lowest = 1.0
        for order, place in enumerate(shown):
            column = [row[place] for row in fidelity.layers]
            heights = np.array([np.nan if height is None else height for height in column])
            # The line of older frames is stronger.
            alpha = 0.35 + 0.65 * (order + 1) / len(shown)
            axes.plot(
                layers, heights, "o-", color=_COMPRESSED, alpha=alpha, linewidth=1.6, markersize=3
            )
            if np.isfinite(heights[-1]):
                age = fidelity.ages[place]
                label = f" {age} frame{'s' if age > 1 else ''}"
                axes.annotate(label, (len(heights), heights[-1]), color=_MUTED, va="center")
            lowest = min([lowest, *heights[np.isfinite(heights)].tolist()])
        room = 0.08 * max(1 - lowest, 1e-3)
        axes.set_ylim(lowest - room, 1 + room)
        axes.set_ylabel("cosine to dense")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    words = "Cosine of each layer's output to the dense one, by frames since the refresh"
    return _chart(draw, 2.8, words, "layer")


def _mark(axes: Axes, frames: Sequence[FrameNumbers], heights: Sequence[float]) -> None:
    refreshed = [(f.time, h) for f, h in zip(frames, heights, strict=True) if f.refreshed]
    selective = [(f.time, h) for f, h in zip(frames, heights, strict=True) if not f.refreshed]
    for points, marker, size in ((refreshed, "D", 30), (selective, "o", 11)):
        if points:
            times, values = zip(*points, strict=True)
            axes.scatter(times, values, s=size, marker=marker, color=_COMPRESSED, zorder=3)
    for frame in frames:
        if frame.scene_cut:
            axes.axvline(frame.time, color=_CUT, linewidth=1.4, linestyle=(0, (4, 3)), zorder=1)


def _above(axes: Axes, frames: Sequence[FrameNumbers], top: float) -> None:
    over = [frame for frame in frames if max(frame.dense_ms, frame.compressed_ms) > top]
    for frame in over:
        slower = _DENSE if frame.dense_ms > frame.compressed_ms else _COMPRESSED
        axes.scatter([frame.time], [0.97 * top], s=34, marker="^", color=slower, zorder=4)
    if over:
        slowest = max(max(frame.dense_ms, frame.compressed_ms) for frame in over)
        axes.set_title(
            f"▲ {len(over)} frame{'s' if len(over) > 1 else ''} slower than the chart is high "
            f"({'up to ' if len(over) > 1 else ''}{slowest:.0f} ms)",
            loc="right",
            fontsize=10,
            color=_MUTED,
        )


def _chart(draw: Callable[[Axes], None], inches: float, label: str, along: str = "seconds") -> str:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, inches), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_xlabel(along)
        axes.margins(x=0.015)
        axes.grid(axis="y", color=_LINE, linewidth=0.8)
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
