"""Make one table, one figure and the files that are kept from runs of `pytest benchmarks`.

    python -m benchmarks.report RUN.json [RUN.json ...] --save benchmarks/results/NAME
                                [--figure docs/figures/ops.svg] [--note TEXT]

RUN.json is what ``--benchmark-json`` wrote. NAME.json can be compared with another
(`benchmarks/compare.py`); NAME.md is for people. Of several runs the medians are kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.results import Result, Results, from_runs
from benchmarks.targets import misses, verdicts

_COLUMNS = (
    *("op", "model", "F", "dtype", "fastest plain way", "its ms", "ours ms", "× fastest"),
    *("× eager", "× compiled", "× lean", "× lean compiled", "× float32-first"),
    *("reads", "GB/s", "% of read", "% of copy"),
)
_TEXT_COLUMNS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and write what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.json")
    parser.add_argument("--save", type=Path, metavar="PREFIX", help="write PREFIX.json, PREFIX.md")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the ops' figure")
    parser.add_argument("--note", default="", help="what a reader should know about the runs")
    parser.add_argument("--command", default="make bench", help="how they are run again")
    options = parser.parse_args(arguments)
    missing = [str(path) for path in options.runs if not path.exists()]
    if missing:
        print(f"report: no such file: {', '.join(missing)}", file=sys.stderr)
        return 2
    results = from_runs(options.runs, options.note, options.command)
    Console(width=None if sys.stdout.isatty() else 150).print(table(results))
    print(summary(results))
    if options.save is not None:
        results.save(options.save.with_name(options.save.name + ".json"))
        page = options.save.with_name(options.save.name + ".md")
        page.write_text(markdown(results), encoding="utf-8")
    if options.figure is not None:
        draw(results, options.figure)
    return 0


def table(results: Results) -> Table:
    """Return all results as one table."""
    shown = Table(box=box.SIMPLE_HEAD, title=_title(results))
    for position, name in enumerate(_COLUMNS):
        shown.add_column(name, justify="left" if position < _TEXT_COLUMNS else "right")
    for rows in (_op_rows(results), _overhead_rows(results), _tower_rows(results)):
        for row in rows:
            shown.add_row(*row)
        shown.add_section()
    return shown


def summary(results: Results) -> str:
    """Return how many targets are met, and a line for each that is not."""
    missed, all_targets = misses(results), verdicts(results)
    lines = [f"{len(all_targets) - len(missed)} of {len(all_targets)} targets met"]
    lines += [f"missed: {m.result}: {m.figure}, target {m.target}" for m in missed]
    return "\n".join(lines)


def markdown(results: Results) -> str:
    """Return the results as a page."""
    lines = [f"# {_title(results)}", "", *_circumstances(results), ""]
    lines += _markdown_table(_COLUMNS, _op_rows(results))
    lines += _explanation()
    overheads = list(_overhead_rows(results))
    if overheads:
        head = ("op", "a call µs", "over an empty op µs", "through `stc_kernels` µs")
        rows = (_overhead_cells(r) for r in results.results if r.kind == "overhead")
        lines += ["", "## A call on almost nothing", "", *_markdown_table(head, rows)]
    towers = [r for r in results.results if r.kind == "tower"]
    if towers:
        head = ("benchmark", "tower", "fastest dense", "its ms", "ours ms", "× fastest", "cap")
        lines += ["", "## Tower", "", *_markdown_table(head, map(_tower_cells, towers))]
    lines += ["", "## Targets", "", *_target_lines(results), ""]
    return "\n".join(lines)


def draw(results: Results, path: Path) -> None:
    """Draw how many times faster ours is than PyTorch, for the ops with targets."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.hashsalt": "stc", "svg.fonttype": "none"}
    from matplotlib import pyplot

    shown = [r for r in results.results if r.kind == "op" and r.about["default"]]
    dtypes = list(dict.fromkeys(r.about["dtype"] for r in shown))
    height = 0.8 + 0.34 * max(sum(r.about["dtype"] == d for r in shown) for d in dtypes)
    figure, axes = pyplot.subplots(
        1,
        len(dtypes),
        figsize=(5.6 * len(dtypes), height),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        rows = [r for r in shown if r.about["dtype"] == dtype]
        for offset, label, color in (
            (-0.2, "eager", "#9aa5b1"),
            (0.2, "the fastest plain way", "#2a6f97"),
        ):
            sides = ["eager" if label == "eager" else r.fastest for r in rows]
            ratios = [r.times_faster_than(s) or 0.0 for r, s in zip(rows, sides, strict=True)]
            places = [position + offset for position in range(len(rows))]
            bars = axis.barh(places, ratios, height=0.36, color=color, label=label)
            axis.bar_label(bars, [f"{ratio:.1f}" for ratio in ratios], padding=2, fontsize=7)
        labels = [f"{r.about['op']}  F {r.about['frames']}" for r in rows]
        axis.set_yticks(range(len(rows)), labels, fontsize=8)
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.axvline(1, color="black", linewidth=0.8)
        axis.margins(x=0.12, y=0.01)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_title(dtype, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    figure.suptitle(_title(results), fontsize=10)
    figure.supxlabel("times as fast as PyTorch, log scale (right of 1: ours is faster)", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    figure.savefig(path, metadata=metadata, dpi=150)
    pyplot.close(figure)


def words(side: str) -> str:
    """Return the name of a side for people."""
    return side.replace("_", " ").replace("float32", "float32-first")


def _title(results: Results) -> str:
    machine = results.machine
    where = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads"
    return f"{where}, torch {machine['torch']}"


def _circumstances(results: Results) -> list[str]:
    facts = ", ".join(f"{name.replace('_', ' ')}: {v}" for name, v in results.machine.items())
    lines = [f"Run with `{results.command}`, {results.runs} time(s); medians. {facts}."]
    return lines + ["", results.note] if results.note else lines


def _op_rows(results: Results) -> Iterable[tuple[str, ...]]:
    for result in results.results:
        if result.kind == "op":
            about = result.about
            yield (
                about["op"],
                about["model"],
                str(about["frames"]),
                about["dtype"],
                words(result.fastest),
                f"{1e3 * result.sides[result.fastest].median:.3g}",
                f"{1e3 * result.ours:.3g}",
                _times(result, result.fastest),
                _times(result, "eager"),
                _times(result, "compiled"),
                _times(result, "lean"),
                _times(result, "lean_compiled"),
                _times(result, "float32"),
                f"{result.reads:.2f}",
                f"{result.rate / 1e9:.1f}",
                f"{result.percent_of_read:.0f}",
                f"{result.percent_of_copy:.0f}",
            )


def _overhead_rows(results: Results) -> Iterable[tuple[str, ...]]:
    for result in results.results:
        if result.kind == "overhead":
            over = f"{1e6 * result.overhead:.1f} µs over an empty op"
            op, dtype = result.about["op"], result.about["dtype"]
            yield op, over, "1", dtype, "", "", f"{1e3 * result.ours:.3g}"


def _tower_rows(results: Results) -> Iterable[tuple[str, ...]]:
    for result in results.results:
        if result.kind == "tower":
            name, model, *times, ratio, cap = _tower_cells(result)
            yield name, model, "", "", *times, f"{ratio}, cap {cap}"


def _overhead_cells(result: Result) -> tuple[str, ...]:
    times = (result.ours, result.overhead, result.sides["function"].median)
    return result.about["op"], *(f"{1e6 * seconds:.1f}" for seconds in times)


def _tower_cells(result: Result) -> tuple[str, ...]:
    dense, ratio = result.sides[result.fastest].median, result.times_faster_than(result.fastest)
    times = f"{1e3 * dense:.4g}", f"{1e3 * result.ours:.4g}", f"{ratio:.2f}"
    cap = "—" if result.about["cap"] is None else f"{result.about['cap']:.2f}"
    return result.name, result.about["tower"], words(result.fastest), *times, cap


def _times(result: Result, side: str) -> str:
    ratio = result.times_faster_than(side)
    return "—" if ratio is None else f"{ratio:.1f}"


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(row) for row in rows]
    return [f"| {line} |" for line in lines]


def _explanation() -> list[str]:
    return [
        "",
        "× fastest: the median of the fastest plain way in PyTorch over ours; beside it the ways "
        "one by one (`benchmarks/eager.py`): eager, as the formula reads, in the tokens' dtype; "
        "lean, with fewer passes; float32-first, which converts the tokens (its lean and compiled "
        "are in the JSON). reads: our time over that of summing the op's "
        "inputs. GB/s: the fewest bytes that the op can move over our time, also in percent of the "
        "rate of that sum and of a copy's (read and written).",
    ]


def _target_lines(results: Results) -> list[str]:
    missed, all_targets = misses(results), verdicts(results)
    lines = [f"{len(all_targets) - len(missed)} of {len(all_targets)} met."]
    if missed:
        rows = [(m.result, m.target, m.figure) for m in missed]
        lines += ["", *_markdown_table(("missed", "target", "reached"), rows)]
    return lines


if __name__ == "__main__":
    sys.exit(main())
