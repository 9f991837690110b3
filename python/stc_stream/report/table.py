"""The table of a run, for a terminal, and the one line that says what came of it."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from stc_stream.evaluate.timing import Timing
from stc_stream.report.run import StreamRun
from stc_stream.report.terminal import printable, some

# Rows by age: a long refresh interval would fill the screen.
_AGES = 3


def verdict(run: StreamRun) -> str:
    """Return the line that says what compression saved, or that it lost and what to try."""
    reduction = run.summary.reduction
    if reduction >= 0.005:
        saved = f"{run.title} saved {reduction:.0%} of ViT time on this machine"
        if run.summary.compressed.median <= run.summary.dense.median:
            return f"{saved}."
        # Only a few slow frames can make the sums say so: something else used the machine.
        return f"{saved}, but the median frame took longer: is it busy? Run again."
    if reduction > -0.005:
        outcome = f"{run.title} saved nothing: compressed frames took as long as dense ones"
        outcome += " on this machine"
    else:
        outcome = f"{run.title} lost: ViT time grew by {-reduction:.0%} on this machine"
    return f"{outcome}; try {_remedy(run)}."


def summary_table(run: StreamRun) -> Table:
    """Return latency, tokens and closeness to dense, at most 80 columns wide."""
    summary = run.summary
    # As a Text: a file's name may look like markup.
    frames = f"{summary.frames} frame{'s' if summary.frames != 1 else ''}"
    title = Text(f"{printable(run.source)}: {frames}", style="table.title")
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading in ("median", "p95", "mean"):
        table.add_column(heading, justify="right")
    table.add_row("ViT dense, ms a frame", *_latency(summary.dense))
    table.add_row("ViT compressed, ms a frame", *_latency(summary.compressed))
    if summary.selective:
        table.add_row("  its selective frames", *_latency(summary.selective), style="dim")
    medians = 1 - summary.compressed.median / summary.dense.median
    table.add_row(
        "reduction (mean: of the total time)",
        f"{medians:.0%}",
        "",
        f"{summary.reduction:.0%}",
        style="bold",
    )
    if run.pruner is not None:
        table.add_row("Pruner, ms a frame", *_latency(summary.pruner))
    table.add_section()
    table.add_row("", "", "share", "a frame", style="italic")
    for words, tokens in (
        ("tokens recomputed", summary.tokens_recomputed),
        ("tokens kept by the Pruner", summary.tokens_kept),
    ):
        table.add_row(
            f"{words}, of {summary.tokens}", "", f"{tokens / summary.tokens:.0%}", f"{tokens:.0f}"
        )
    table.add_section()
    table.add_row("", "", "lowest", "mean", style="italic")
    table.add_row(
        "cosine of features to dense, a frame",
        "",
        _cosine(summary.cosine_lowest_frame),
        _cosine(summary.cosine),
    )
    if summary.selective:
        mean = _cosine(summary.cosine_selective)
        table.add_row("  on selective frames", "", "", mean, style="dim")
    for age, cosine in _by_age(run):
        words = f"  {age} frame{'s' if age > 1 else ''} after its refresh"
        table.add_row(words, "", "", _cosine(cosine), style="dim")
    return table


def _by_age(run: StreamRun) -> list[tuple[int, float | None]]:
    """Return the features' cosine at a few ages, the first selective one and the last with them."""
    if run.fidelity is None:
        return []
    rows = [
        (age, cosine)
        for age, cosine in zip(run.fidelity.ages, run.fidelity.features, strict=True)
        if age > 0
    ]
    return [rows[place] for place in some(len(rows), _AGES)]


def _latency(timing: Timing) -> tuple[str, str, str]:
    return milliseconds(timing.median), milliseconds(timing.p95), milliseconds(timing.mean)


def milliseconds(value: float | None) -> str:
    """Return milliseconds to three digits, or a dash."""
    if value is None:
        return "—"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _cosine(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.4f}"


def _remedy(run: StreamRun) -> str:
    tries = []
    if run.cacher is not None and run.cacher.refresh_interval < 8:
        tries.append(f"--refresh-interval {max(4, run.cacher.refresh_interval * 2)}")
    if run.cacher is not None and run.cacher.update_ratio > 0.1:
        tries.append(f"--update-ratio {run.cacher.update_ratio / 2:.2g}")
    if run.summary.frames <= run.method.refresh_interval or run.summary.selective is None:
        tries.append("a longer video")
    else:
        tries.append("a larger model")
    return " or ".join([", ".join(tries[:-1]), tries[-1]] if len(tries) > 1 else tries)
