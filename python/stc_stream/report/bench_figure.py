"""The figure of a benchmark: a selective frame's latency against r, and what dense takes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stc_stream.evaluate.bench import BenchRun
from stc_stream.report.drawing import new_figure
from stc_stream.report.target import write_whole
from stc_stream.report.terminal import printable
from stc_stream.report.versions import processor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png")
_COLOURS = ("#c65a00", "#1f6feb", "#2e8540", "#8250df", "#b3261e", "#57606a")
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "stc", "font.size": 10}


def write_figure(run: BenchRun, path: Path) -> Path:
    """Draw latency a frame against `update_ratio`, a curve for each number of streams.

    A curve is of selective batches; dashes are the fastest dense side at as many streams. The file
    is written as `write_whole` does, and its path returned.

    Args:
        run: with at least one setting.
        path: ends in .svg or .png.

    Raises:
        OSError: it cannot be written.
    """
    with new_figure((9, 4), _STYLE) as figure:
        _draw(figure.add_subplot(), run)
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)
        kind = path.suffix.removeprefix(".")
        metadata = {"Date": None} if kind == "svg" else None
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    write_whole(path, buffer.getvalue())
    return path


def _draw(axes: Axes, run: BenchRun) -> None:
    for number, streams in enumerate(run.rounds):
        colour = _COLOURS[number % len(_COLOURS)]
        words = f"{streams} stream{'' if streams == 1 else 's'}"
        for graph in sorted({setting.graph for setting in run.settings}):
            points = sorted(
                {
                    (setting.update_ratio, setting.selective.median, setting.selective.best)
                    for setting in run.settings
                    if (setting.streams, setting.graph) == (streams, graph)
                }
            )
            ratios, medians, least = zip(*points, strict=True)
            label = f"{words}, CUDA graph" if graph else words
            axes.plot(ratios, medians, "s-" if graph else "o-", color=colour, label=label)
            axes.fill_between(ratios, least, medians, color=colour, alpha=0.15, linewidth=0)
        dense = [each for each in run.dense if each.streams == streams and each.timing]
        best = min(dense, key=lambda each: each.timing.median if each.timing else 0.0)
        if best.timing:
            label = f"dense ({best.variant}), {words}"
            axes.axhline(best.timing.median, color=colour, linestyle=(0, (5, 3)), label=label)
    axes.set_xlabel("update ratio r: share of a selective frame's tokens that is recomputed")
    axes.set_ylabel("ms a frame, median (shade: to the least)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    layers = f"first {run.tower.layers} of {run.whole_layers} layers, "
    axes.set_title(
        f"{printable(run.tower.name)}, {layers if run.tower.layers < run.whole_layers else ''}"
        f"{str(run.tower.dtype).removeprefix('torch.')}: a selective frame\n"
        f"{processor(run.tower.device)}",
        fontsize=10,
        loc="left",
    )
