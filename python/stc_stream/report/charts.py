"""Charts over time and by layer, as SVG that takes its ink from the page around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stc_stream.evaluate.fidelity import Fidelity
from stc_stream.evaluate.summary import FrameNumbers
from stc_stream.report.svg import COMPRESSED, CUT, DENSE, FONT, LINE, MUTED, inline_chart
from stc_stream.report.terminal import some

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 400
"""Points of a line over time; of a longer run, each is the mean of several frames."""

MOST_AGES = 5
"""Lines of the chart by layer."""

_MOST_CUTS = 40

Values = NDArray[np.float64]


def frames_a_point(frames: int) -> int:
    """Return how many frames in a row a point of the charts over time stands for."""
    return math.ceil(frames / MOST_POINTS)


def latency_chart(frames: Sequence[FrameNumbers]) -> str:
    """Return the tower's milliseconds over time, dense and compressed, as an inline SVG."""
    size = frames_a_point(len(frames))

    def draw(axes: Axes) -> None:
        times = _times(frames, size)
        dense = _grouped([frame.dense_ms for frame in frames], size, np.mean)
        compressed = _grouped([frame.compressed_ms for frame in frames], size, np.mean)
        axes.plot(times, dense, color=DENSE, linewidth=1.6)
        axes.plot(times, compressed, color=COMPRESSED, linewidth=1.6)
        axes.fill_between(times, compressed, dense, color=COMPRESSED, alpha=0.1, linewidth=0)
        if size == 1:
            _mark(axes, frames, compressed)
        _mark_cuts(axes, frames, size)
        # One hiccup of the machine must not flatten all the rest.
        usual = float(np.percentile([*dense, *compressed], 95))
        top = max(1.3 * usual, 1e-3)
        axes.set_ylim(0, top)
        _mark_above(axes, times, dense, compressed, "point" if size > 1 else "frame")
        axes.set_ylabel("ms a frame")

    return inline_chart(draw, 3.1, "Latency of the vision tower over time")


def cosine_chart(frames: Sequence[FrameNumbers]) -> str:
    """Return the cosine of compressed to dense features over time, as an inline SVG.

    Where a point stands for several frames, a shade reaches down to the lowest of them.
    """
    size = frames_a_point(len(frames))

    def draw(axes: Axes) -> None:
        times = _times(frames, size)
        cosines = [np.nan if frame.cosine is None else frame.cosine for frame in frames]
        mean, least = (_grouped(cosines, size, reduce) for reduce in (np.mean, np.min))
        axes.plot(times, mean, color=COMPRESSED, linewidth=1.6)
        if size == 1:
            _mark(axes, frames, mean)
        else:
            axes.fill_between(times, least, mean, color=COMPRESSED, alpha=0.25, linewidth=0)
        _mark_cuts(axes, frames, size)
        lowest = min((value for value in least if np.isfinite(value)), default=0.0)
        axes.set_ylim(*_limits(lowest))
        axes.set_ylabel("cosine to dense")

    return inline_chart(draw, 2.4, "Cosine of the compressed features to the dense ones over time")


def fidelity_chart(fidelity: Fidelity) -> str:
    """Return the cosine to dense by layer, a line for each of a few ages, as an inline SVG."""

    def draw(axes: Axes) -> None:
        selective = [place for place, age in enumerate(fidelity.ages) if age > 0]
        shown = [selective[each] for each in some(len(selective), MOST_AGES)]
        layers = range(1, len(fidelity.layers) + 1)
        lowest = 1.0
        ends = []
        for order, place in enumerate(shown):
            column = [row[place] for row in fidelity.layers]
            heights = np.array([np.nan if height is None else height for height in column])
            # The line of older frames is stronger.
            alpha = 0.35 + 0.65 * (order + 1) / len(shown)
            axes.plot(
                layers, heights, "o-", color=COMPRESSED, alpha=alpha, linewidth=1.6, markersize=3
            )
            if np.isfinite(heights[-1]):
                age = fidelity.ages[place]
                ends.append((float(heights[-1]), f"{age} frame{'s' if age > 1 else ''}"))
            lowest = min([lowest, *heights[np.isfinite(heights)].tolist()])
        axes.set_ylim(*_limits(lowest))
        axes.set_ylabel("cosine to dense")
        axes.locator_params(axis="x", integer=True)
        _label_ends(axes, len(fidelity.layers), ends)

    words = "Cosine of each layer's output to the dense one, by frames since the refresh"
    return inline_chart(draw, 2.8, words, "layer")


def _times(frames: Sequence[FrameNumbers], size: int) -> Values:
    return _grouped([frame.time for frame in frames], size, np.mean)


def _grouped(values: Sequence[float], size: int, reduce: Callable[[Values], Any]) -> Values:
    """Reduce each `size` values in a row to one, leaving out what is no number."""
    array = np.array(values, np.float64)
    groups = (array[start : start + size] for start in range(0, len(array), size))
    finite = (group[np.isfinite(group)] for group in groups)
    return np.array([reduce(group) if len(group) else np.nan for group in finite])


def _limits(lowest: float) -> tuple[float, float]:
    room = 0.08 * max(1 - lowest, 1e-3)
    return lowest - room, 1 + room


def _mark(axes: Axes, frames: Sequence[FrameNumbers], heights: Values) -> None:
    refreshed = [(f.time, h) for f, h in zip(frames, heights, strict=True) if f.refreshed]
    selective = [(f.time, h) for f, h in zip(frames, heights, strict=True) if not f.refreshed]
    for points, marker, size in ((refreshed, "D", 30), (selective, "o", 11)):
        if points:
            times, values = zip(*points, strict=True)
            axes.scatter(times, values, s=size, marker=marker, color=COMPRESSED, zorder=3)


def _mark_cuts(axes: Axes, frames: Sequence[FrameNumbers], size: int) -> None:
    """Draw a line at each scene cut; strokes at the foot where there are many."""
    groups = {place // size: f.time for place, f in enumerate(frames) if f.scene_cut}
    if len(groups) > _MOST_CUTS:
        foot = axes.get_xaxis_transform()
        axes.vlines([*groups.values()], 0, 0.07, color=CUT, linewidth=1.4, transform=foot)
        return
    for time in groups.values():
        axes.axvline(time, color=CUT, linewidth=1.4, linestyle=(0, (4, 3)), zorder=1)


def _mark_above(axes: Axes, times: Values, dense: Values, compressed: Values, what: str) -> None:
    """Mark what is higher than the chart, and say so."""
    top = axes.get_ylim()[1]
    slowest = np.maximum(dense, compressed)
    for place in np.flatnonzero(slowest > top):
        slower = DENSE if dense[place] > compressed[place] else COMPRESSED
        axes.scatter([times[place]], [0.97 * top], s=34, marker="^", color=slower, zorder=4)
    over = int((slowest > top).sum())
    if over:
        axes.set_title(
            f"▲ {over} {what}{'s' if over > 1 else ''} slower than the chart is high "
            f"({'up to ' if over > 1 else ''}{slowest.max():.0f} ms)",
            loc="right",
            fontsize=10,
            color=MUTED,
        )


def _label_ends(axes: Axes, x: float, ends: Sequence[tuple[float, str]]) -> None:
    """Write beside the right ends of lines, each label clear of its line and of the others."""
    # Where a height comes to lie is known once the figure has been laid out.
    figure: Any = axes.figure
    figure.draw_without_rendering()
    points = 72 / figure.dpi
    own = [points * axes.transData.transform((x, height))[1] for height, _ in sorted(ends)]
    placed, gap = list(own), 1.25 * FONT
    for place in range(1, len(own)):
        placed[place] = max(own[place], placed[place - 1] + gap)
    limit = points * axes.bbox.y1
    for place in reversed(range(len(own))):
        placed[place] = limit = min(placed[place], limit)
        limit -= gap
    leader = {"arrowstyle": "-", "color": LINE, "linewidth": 1, "shrinkA": 1, "shrinkB": 4}
    for (height, label), before, after in zip(sorted(ends), own, placed, strict=True):
        axes.annotate(
            label,
            (x, height),
            xytext=(18, after - before),
            textcoords="offset points",
            color=MUTED,
            va="center",
            arrowprops=leader,
        )
