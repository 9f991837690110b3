"""The page and the figures of the trade-off: closeness to dense against latency."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.tradeoff import Row, Tradeoff
    from stc_stream.evaluate.fidelity import Fidelity


def markdown(found: Tradeoff) -> str:
    """Return all rows as a page."""
    about = found.about
    where = about["machine"]
    lines = [
        f"# {about['tower']}, {about['weights']}: closeness against latency",
        "",
        f"{about['layers']} layers, {about['tokens']} patches, {where['dtype']}; "
        f"{about['frames']} frames of {about['clip']}; dense {found.dense_ms:.0f} ms a frame"
        f"{' of ' + about['timed'] if 'timed' in about else ''}. "
        f"{where['processor']}, {where['threads']} threads, torch {about['versions']['torch']}. "
        "Latency: of a frame over a whole cycle, as a ratio to dense. Cosine: of features to "
        "dense, mean over patches.",
        "",
        "| | latency | cosine, mean | worst frame | refreshes | tokens computed |",
        "|---|---|---|---|---|---|",
    ]
    for row in found.rows:
        lines.append(
            f"| {label(row)} | {row.latency:.2f} | {row.mean:.4f} | {row.worst:.4f} | "
            f"{row.refreshes} | {row.recomputed:.0%} |"
        )
    if found.same_choice:
        by_layer = ", ".join(f"{share:.1%}" for share in found.same_choice)
        lines += ["", f"Chosen patches that 8-bit reference keys choose as well, by layer: "
                  f"{by_layer}."]  # fmt: skip
    return "\n".join(lines) + "\n"


def label(row: Row) -> str:
    """Return what a row is called."""
    settings = row.settings
    if row.kind == "dense":
        return "dense"
    if row.kind == "method":
        return str(settings["method"])
    if row.kind == "merge":
        return f"merging {settings['merged']} tokens a layer"
    words = f"N={settings['refresh_interval']}"
    if row.kind == "skip":
        return f"skipping, {words}"
    if row.kind == "threshold":
        return f"STC, {words}, threshold {settings['threshold']:g}"
    words += f", r={settings['update_ratio']:g}"
    if row.kind == "change":
        change = settings["refresh_on_change"]
        return f"STC, {words}, refresh_on_change {change:g}" if change else f"STC, {words}"
    return f"STC, {words}{', int8' if row.kind == 'int8' else ''}"


def draw(found: Tradeoff, directory: Path) -> None:
    """Draw tradeoff-heat.svg, tradeoff.svg, scene-cut.svg and tradeoff-layers.svg."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.hashsalt": "stc", "svg.fonttype": "none", "font.size": 9}
    from matplotlib import pyplot

    directory.mkdir(parents=True, exist_ok=True)
    figure, (mean, worst, latency) = pyplot.subplots(1, 3, figsize=(10, 2.9), layout="constrained")
    for axes, title, read, words in (
        (mean, "cosine to dense, mean", lambda row: row.mean, "{:.4f}"),
        (worst, "cosine to dense, worst frame", lambda row: row.worst, "{:.4f}"),
        (latency, "latency, dense = 1", lambda row: row.latency, "{:.2f}"),
    ):
        _heat(axes, found, title, read, words, reverse=axes is latency)
    _write(figure, directory / "tradeoff-heat.svg")

    figure, pair = pyplot.subplots(1, 2, figsize=(10, 3.8), sharex=True, layout="constrained")
    for axes, title, read in (
        (pair[0], "mean over frames", lambda row: row.mean),
        (pair[1], "worst frame", lambda row: row.worst),
    ):
        _scatter(axes, found, title, read)
    pair[0].legend(frameon=False, fontsize=8)
    _write(figure, directory / "tradeoff.svg")

    figure, axes = pyplot.subplots(figsize=(10, 3), layout="constrained")
    _over_time(axes, found)
    _write(figure, directory / "scene-cut.svg")

    if found.fidelity is not None:
        figure, axes = pyplot.subplots(figsize=(10, 3), layout="constrained")
        _by_layer(axes, found.fidelity)
        _write(figure, directory / "tradeoff-layers.svg")


def _heat(
    axes: Any,
    found: Tradeoff,
    title: str,
    read: Callable[[Row], float],
    words: str,
    reverse: bool,
) -> None:
    intervals, ratios = _grid(found)
    values = [[read(found.stc(interval, ratio)) for ratio in ratios] for interval in intervals]
    picture = axes.imshow(values, cmap="viridis_r" if reverse else "viridis", aspect="auto")
    low, high = picture.get_clim()
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            # White on the dark half of the colours.
            bright = (value - low) / max(high - low, 1e-12) > 0.5
            colour = "black" if bright != reverse else "white"
            axes.text(column, row, words.format(value), ha="center", va="center", color=colour)
    axes.set_xticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios])
    axes.set_yticks(range(len(intervals)), [str(interval) for interval in intervals])
    axes.set_xlabel("update ratio r")
    axes.set_ylabel("refresh interval N")
    axes.set_title(title, fontsize=10)


def _scatter(axes: Any, found: Tradeoff, title: str, read: Callable[[Row], float]) -> None:
    intervals, ratios = _grid(found)
    for interval, colour in zip(intervals, ("#f3a361", "#c65a00", "#7a3500"), strict=True):
        rows = [found.stc(interval, ratio) for ratio in ratios]
        axes.plot(
            [row.latency for row in rows],
            [read(row) for row in rows],
            "o-",
            color=colour,
            label=f"STC, N={interval}, r={', '.join(f'{ratio:g}' for ratio in ratios)}",
        )
    for kind, marker, colour, words in (
        ("threshold", "^:", "#8250df", "STC, N=4, by threshold"),
        ("skip", "s--", "#57606a", "frame skipping"),
        ("merge", "D--", "#1f6feb", "token merging"),
        ("dense", "*", "black", "dense"),
    ):
        rows = found.of(kind)
        points = [row.latency for row in rows], [read(row) for row in rows]
        axes.plot(*points, marker, color=colour, label=words)
    for row in found.of("method"):
        axes.plot(row.latency, read(row), "P", label=label(row))
    axes.set_xlabel("latency, dense = 1")
    axes.set_ylabel("cosine to dense")
    axes.set_xlim(left=0)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _over_time(axes: Any, found: Tradeoff) -> None:
    skip = next(row for row in found.of("skip") if row.settings["refresh_interval"] == 8)
    rows = [(skip, "#57606a"), (found.stc(8, 0.25), "#f3a361"), (found.of("change")[0], "#7a3500")]
    for row, colour in rows:
        axes.plot(row.cosines, "o-", markersize=3, color=colour, label=label(row))
    axes.set_xlabel("frame of the clip")
    axes.set_ylabel("cosine to dense")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def _by_layer(axes: Any, fidelity: Fidelity) -> None:
    from matplotlib import colormaps

    layers = range(1, len(fidelity.layers) + 1)
    for place, age in enumerate(fidelity.ages):
        if age > 0:
            colour = colormaps["viridis"](place / len(fidelity.ages))
            values = [layer[place] for layer in fidelity.layers]
            axes.plot(layers, values, "o-", markersize=3, color=colour, label=str(age))
    axes.set_xlabel("layer")
    axes.set_xticks(layers)
    axes.set_ylabel("cosine to dense")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="frames since\nthe refresh", frameon=False, fontsize=8, ncols=2)


def _grid(found: Tradeoff) -> tuple[list[int], list[float]]:
    """Return the intervals N and the ratios r of its rows of STC."""
    settings = [row.settings for row in found.of("stc")]
    return tuple(
        sorted({each[name] for each in settings}) for name in ("refresh_interval", "update_ratio")
    )  # type: ignore[return-value]


def _write(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
