"""Time towers, and keep the table and the figure: one command a part.

    python -m benchmarks.tower_report frames --save benchmarks/results/NAME-towers
    python -m benchmarks.tower_report streams --save benchmarks/results/NAME-streams \\
        --figure docs/figures/streams.svg

`frames` times SigLIP-so400m, CLIP-L and Qwen2-VL, one stream and eight, selective frames and whole
cycles; `streams` times a frame of SigLIP-base's first layer over 1 to 64 streams and may draw the
curve. Arguments after `--` go to pytest (`-- -k clip`, `-- --method skip`). `--runs` makes the
files anew from what was kept.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.results import Result, Results, from_runs

PARTS = {
    "frames": "not selective_frames_of_streams",
    "streams": "selective_frames_of_streams",
}
_CACHER = "stc:update_ratio=0.25,refresh_on_change=none"
_HEAD = (
    *("benchmark", "tower", "dense ms", "compiled ms", "ours ms"),
    *("times faster", "(least)", "cap", "saved"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a part, print its table and write its files; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tower_report", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--save", type=Path, metavar="PREFIX", help="write PREFIX.json, PREFIX.md")
    parser.add_argument("--figure", type=Path, help="draw the curve of `streams` there")
    parser.add_argument("--runs", type=Path, nargs="+", metavar="RUN.json", help="run nothing")
    parser.add_argument("--note", default="", help="what a reader should know about the runs")
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:cut])
    runs = options.runs
    if runs is None:
        runs = [Path("build") / "bench" / f"tower-{options.part}.json"]
        code = _run(options.part, options.dtype, runs[0], given[cut + 1 :])
        if code:
            return code
    missing = [str(path) for path in runs if not path.exists()]
    if missing:
        print(f"tower_report: no such file: {', '.join(missing)}", file=sys.stderr)
        return 2
    command = f"python -m benchmarks.tower_report {options.part} --dtype {options.dtype}"
    if given[cut:]:
        command += f" {shlex.join(given[cut:])}"
    results = from_runs(runs, options.note, command)
    Console(width=None if sys.stdout.isatty() else 160).print(table(results))
    if options.save is not None:
        results.save(options.save.with_name(options.save.name + ".json"))
        page = options.save.with_name(options.save.name + ".md")
        page.write_text(markdown(results), encoding="utf-8")
    if options.part == "streams" and options.figure is not None:
        draw(results, options.figure)
    return 0


def rows(results: Results) -> list[tuple[str, ...]]:
    """Return a row a benchmark, in the columns of the table."""
    return [_row(result) for result in results.results]


def table(results: Results) -> Table:
    """Return all benchmarks as a table."""
    shown = Table(title=_title(results), title_justify="left")
    for number, heading in enumerate(_HEAD):
        shown.add_column(heading, justify="left" if number < 2 else "right")
    for row in rows(results):
        shown.add_row(*map(escape, row))
    return shown


def markdown(results: Results) -> str:
    """Return all benchmarks as a page."""
    lines = [
        f"# {_method(results)}, on {_title(results)}",
        "",
        "Random weights. Each round times a dense pass, eager and compiled, "
        "right before ours, which is not compiled. Medians of passes; how many times faster than "
        "the faster dense side: the median of the rounds' own ratios, and the least times' ratio.",
        "",
        f"Run with `{results.command}`, {results.runs} time(s). "
        + ", ".join(f"{name.replace('_', ' ')}: {v}" for name, v in results.machine.items())
        + ".",
        *(["", results.note] if results.note else []),
        "",
        f"| {' | '.join(_HEAD)} |",
        f"|{'---|' * len(_HEAD)}",
        *(f"| {' | '.join(row)} |" for row in rows(results)),
        "",
    ]
    return "\n".join(lines)


def draw(results: Results, path: Path) -> None:
    """Draw milliseconds a frame and layer over the number of streams, dense and ours."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.hashsalt": "stc", "svg.fonttype": "none", "font.size": 10}
    from matplotlib import pyplot

    timed = sorted(results.results, key=lambda result: result.about["streams"])
    streams = [result.about["streams"] for result in timed]
    figure, axes = pyplot.subplots(figsize=(8, 3.8), layout="constrained")
    dense = [_per_layer(result, result.fastest) for result in timed]
    axes.plot(streams, dense, "o-", color="#57606a", label="dense, the faster of eager, compiled")
    ours = [_per_layer(result, "ours") for result in timed]
    axes.plot(streams, ours, "o-", color="#c65a00", label="selective frame, r = 0.25")
    if all(result.about["cap"] for result in timed):
        least = [ms / result.about["cap"] for ms, result in zip(dense, timed, strict=True)]
        axes.plot(streams, least, ":", color="#c65a00", label="what the arithmetic allows")
    axes.set_xscale("log", base=2)
    axes.set_xticks(streams, [str(count) for count in streams])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("streams, a frame of each a batch")
    axes.set_ylabel("ms a frame and layer")
    axes.set_title(f"{timed[0].about['tower']}\n{_title(results)}", fontsize=10, loc="left")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _run(part: str, dtype: str, path: Path, more: Sequence[str]) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    selected = f"({PARTS[part]}) and {dtype}"
    if "-k" in more:
        place = more.index("-k")
        selected = f"{selected} and ({more[place + 1]})"
        more = [*more[:place], *more[place + 2 :]]
    command = [sys.executable, "-m", "pytest", "-q", "benchmarks/test_tower.py", "-k", selected]
    quiet = ["--benchmark-quiet", "--benchmark-json", str(path)]
    return subprocess.run([*command, *quiet, *more], check=False).returncode


def _method(results: Results) -> str:
    names = {result.about.get("method", _CACHER) for result in results.results}
    other = ", ".join(sorted(names - {_CACHER}))
    return f"A tower under {other}" if other else "A tower with a Cacher, update_ratio 0.25"


def _row(result: Result) -> tuple[str, ...]:
    about, ratio = result.about, result.about["times_faster"]
    return (
        result.name,
        about["tower"].replace("torch.", ""),
        *(
            _ms(result.sides[side].median) if side in result.sides else "—"
            for side in ("dense", "dense_compiled", "ours")
        ),
        f"{ratio:.2f}",
        f"{about['times_faster_of_minima']:.2f}",
        "—" if about["cap"] is None else f"{about['cap']:.2f}",
        f"{1 - 1 / ratio:.1%}",
    )


def _per_layer(result: Result, side: str) -> float:
    """Return milliseconds a frame and layer."""
    return 1e3 * result.sides[side].median / result.about["frames"] / result.about["layers"]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}" if seconds >= 1 else f"{1e3 * seconds:.4g}"


def _title(results: Results) -> str:
    machine = results.machine
    where = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads"
    return f"{where}, torch {machine['torch']}"


if __name__ == "__main__":
    sys.exit(main())
