"""A benchmark of a tower as tables, as the lines that say what came of it, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

import stc_kernels
from stc_stream.evaluate.bench import BenchRun, Compared, Setting
from stc_stream.evaluate.fidelity import Fidelity
from stc_stream.evaluate.timing import Timing
from stc_stream.report.document import machine, read_schema
from stc_stream.report.terminal import printable, some
from stc_stream.report.versions import versions

SCHEMA_VERSION = 1

# Columns of the table of closeness: the first layer, the last, and two between.
_SHOWN_LAYERS = 4
# Settings named in one line, before the rest is counted.
_NAMED = 4


def verdict(run: BenchRun) -> list[str]:
    """Return a few lines: where STC wins on this machine, where it loses, what is undecided."""
    if not run.settings:
        return ["Nothing was timed."]
    by_outcome: dict[str, list[Setting]] = {"wins": [], "loses": [], "even": []}
    for setting in sorted(run.settings, key=lambda each: -each.speedup):
        by_outcome[setting.outcome].append(setting)
    wins, loses, even = by_outcome["wins"], by_outcome["loses"][::-1], by_outcome["even"]
    lines = []
    if wins:
        best = wins[0]
        lines.append(
            f"STC wins at {len(wins)} of {len(run.settings)} settings on this machine; most at "
            f"{_name(best)}: {best.saved:.0%} of ViT time saved, {best.speedup:.2f} times as "
            f"fast as dense ({best.dense_variant}), {best.percent_of_max:.0f}% of what the "
            "arithmetic allows."
        )
    else:
        lines.append(f"STC wins at none of {len(run.settings)} settings on this machine.")
    if loses:
        lines.append(f"It LOSES at {_names(loses)}: leave those out.")
    elif not even:
        lines.append("It loses at none.")
    if even:
        lines.append(f"Too close to call at {_names(even)}: more --rounds, on an idle machine.")
    return lines


def dense_table(run: BenchRun) -> Table:
    """Return the dense sides and STC's refreshes, milliseconds a frame, median and least."""
    sides = list(dict.fromkeys(dense.variant for dense in run.dense))
    headings = ["streams", *sides, "a refresh with STC"]
    table = _table("dense, ms a frame: median (least)", headings)
    for streams in run.rounds:
        cells = [
            _timing(dense.timing) if dense.timing else Text("—", style="dim")
            for dense in run.dense
            if dense.streams == streams
        ]
        refresh = next(each.refresh for each in run.settings if each.streams == streams)
        table.add_row(str(streams), *cells, _timing(refresh))
    return table


def settings_tables(run: BenchRun) -> list[Table]:
    """Return every setting, held against the fastest dense side at its number of streams.

    Those in a CUDA graph, where there are any, have a table of their own.
    """
    tables = []
    for graph in sorted({setting.graph for setting in run.settings}):
        title = f"with STC{' in a CUDA graph' if graph else ''}, ms a frame: median (least)"
        headings = ["streams", "N", "r", "selective", "cycle", "worst", "× dense", "of cap", ""]
        table = _table(title, headings)
        before = None
        for setting in run.settings:
            if setting.graph is not graph:
                continue
            if before not in (None, setting.streams):
                table.add_section()
            before = setting.streams
            table.add_row(
                str(setting.streams),
                str(setting.refresh_interval),
                f"{setting.update_ratio:g}",
                _timing(setting.selective),
                _timing(setting.cycle),
                _ms(setting.worst_batch_ms),
                f"{setting.speedup:.2f}",
                f"{setting.percent_of_max:.0f}%",
                _outcome(setting),
            )
        tables.append(table)
    return tables


def methods_table(run: BenchRun) -> Table:
    """Return every other method, held against the fastest dense variant without a graph."""
    headings = ["streams", "method", "computed", "cycle", "× dense", "cosine", ""]
    table = _table("other methods, ms a frame: median (least)", headings)
    cosines = {each.method: _mean_cosine(each.fidelity) for each in run.method_fidelity}
    for timing in run.methods:
        table.add_row(
            str(timing.streams),
            Text(printable(timing.method)),
            f"{timing.computed:.0%}",
            _timing(timing.cycle),
            f"{timing.speedup:.2f}",
            cosines.get(timing.method, "—"),
            _outcome(timing),
        )
    return table


def fidelity_table(run: BenchRun) -> Table:
    """Return the cosine to dense by update ratio, frames since the refresh and layer."""
    shown = some(run.tower.layers, _SHOWN_LAYERS)
    layers = [f"layer {number + 1}" for number in shown]
    table = _table("cosine to dense", ["r", "frames since refresh", *layers, "features"])
    for each in run.fidelity:
        fidelity = each.fidelity
        for place, age in enumerate(fidelity.ages):
            if age > 0:
                rows = [*(fidelity.layers[number] for number in shown), fidelity.features]
                cells = ["not a number" if x[place] is None else f"{x[place]:.4f}" for x in rows]
                table.add_row(f"{each.update_ratio:g}", str(age), *cells)
        table.add_section()
    return table


def legend(run: BenchRun) -> list[str]:
    """Return what the columns mean and what was not timed, a line each."""
    rounds = ", ".join(f"{n} at {streams}" for streams, n in run.rounds.items())
    first = run.settings[0]
    lines = [
        "selective: batches without a refresh. cycle: N batches in which every stream refreshes "
        "once, in turn. worst: the slowest batch of it, whole.",
        f"× dense: the fastest dense side over the cycle, median of rounds ({rounds} "
        f"stream{'s' if len(run.rounds) > 1 or 1 not in run.rounds else ''}). of cap: of what the "
        "arithmetic allows, e.g. "
        f"{first.max_speedup:.2f} × at N={first.refresh_interval}, r={first.update_ratio:g} "
        f"(a selective frame: {first.selective_max_speedup:.2f} ×).",
    ]
    notes = dict.fromkeys(f"dense {each.variant}: {each.note}" for each in run.dense if each.note)
    if run.methods:
        lines.append(
            "other methods: a cycle is what repeats; × dense: the fastest of dense eager and "
            "compiled, without a CUDA graph as they are. computed: share of the tokens. cosine: of "
            "features to dense, mean over frames."
        )
    return lines + [f"not timed: {note}" for note in notes]


def bench_document(run: BenchRun) -> dict[str, Any]:
    """Return all numbers of a run as what `json.dumps` takes, in the shape of `bench_schema`."""
    tower = run.tower
    return {
        "schema_version": SCHEMA_VERSION,
        "complete": run.complete,
        "model": {
            "name": tower.name,
            "pretrained": tower.pretrained,
            "image_size": tower.image_size,
            "patch": tower.patch,
            "tokens": tower.tokens,
            "prefix_tokens": tower.prefix_tokens,
            "width": tower.width,
            "layers": tower.layers,
            "whole_layers": run.whole_layers,
        },
        "config": {name: _plain(value) for name, value in asdict(run.config).items()},
        "clip": run.clip,
        "machine": machine(tower),
        "versions": dict(versions()),
        "implementation": stc_kernels.implementation("select_dynamic", tower.device),
        "rounds": [{"streams": streams, "rounds": n} for streams, n in run.rounds.items()],
        "dense": [
            {
                "streams": dense.streams,
                "side": dense.variant,
                "timing": dense.timing and _least(dense.timing),
                "note": dense.note,
            }
            for dense in run.dense
        ],
        "settings": [
            {
                **_compared(setting),
                "update_ratio": setting.update_ratio,
                "refresh_interval": setting.refresh_interval,
                "graph": setting.graph,
                "selective": _least(setting.selective),
                "refresh": _least(setting.refresh),
                "worst_batch_ms": setting.worst_batch_ms,
                "cap": setting.max_speedup,
                "percent_of_cap": setting.percent_of_max,
                "selective_times_faster": setting.selective_speedup,
                "selective_cap": setting.selective_max_speedup,
            }
            for setting in run.settings
        ],
        "methods": [
            {
                **_compared(timing),
                "method": timing.method,
                "refresh_interval": timing.refresh_interval,
                "computed": timing.computed,
            }
            for timing in run.methods
        ],
        "method_fidelity": [
            {"method": each.method, **asdict(each.fidelity)} for each in run.method_fidelity
        ],
        "fidelity": [
            {"update_ratio": each.update_ratio, **asdict(each.fidelity)} for each in run.fidelity
        ],
        "verdict": verdict(run),
    }


def bench_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of `bench_document`."""
    return read_schema("bench.schema.json")


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1)
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _compared(result: Compared) -> dict[str, Any]:
    # The names that documents have had from the first on.
    return {
        "streams": result.streams,
        "cycle": _least(result.cycle),
        "dense_side": result.dense_variant,
        "times_faster": result.speedup,
        "times_faster_min": result.speedup_min,
        "saved": result.saved,
        "outcome": result.outcome,
    }


def _least(timing: Timing) -> dict[str, float]:
    return {"median": timing.median, "min": timing.best}


def _outcome(result: Compared) -> Text:
    style = {"wins": "green", "loses": "bold red", "even": "yellow"}[result.outcome]
    return Text(result.outcome, style=style)


def _mean_cosine(fidelity: Fidelity) -> str:
    """Return the features' cosine to dense, mean over the frames of all ages."""
    pairs = list(zip(fidelity.features, fidelity.frames, strict=True))
    if any(cosine is None for cosine, _ in pairs):
        return "not a number"
    total = sum(cosine * frames for cosine, frames in pairs if cosine is not None)
    return f"{total / sum(fidelity.frames):.4f}"


def _timing(timing: Timing) -> str:
    return f"{_ms(timing.median)} ({_ms(timing.best)})"


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _name(setting: Setting) -> str:
    streams = f"{setting.streams} stream{'' if setting.streams == 1 else 's'}"
    graph = ", CUDA graph" if setting.graph else ""
    return f"{streams}, N={setting.refresh_interval}, r={setting.update_ratio:g}{graph}"


def _names(settings: Sequence[Setting]) -> str:
    named = [f"{_name(setting)} ({setting.saved:+.0%})" for setting in settings[:_NAMED]]
    more = len(settings) - len(named)
    return "; ".join([*named, *([f"{more} more"] if more else [])])


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
