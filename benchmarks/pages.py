"""Write the figures of README.md and docs/ from the results that are kept.

    python -m benchmarks.pages

Each table stands between two comments, `<!-- figures: NAME ... -->` and `<!-- end of figures -->`,
and is made of the files in benchmarks/results/: whoever measures anew saves there and runs this.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.report import words
from benchmarks.results import Result, load

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("README.md", "docs/benchmarks.md", "docs/use-one-op.md")
MACHINE = "amd-epyc-2-cores"
_REGION = re.compile(
    r"(?P<begin><!-- figures: (?P<name>\w+).*? -->\n).*?(?P<end><!-- end of figures -->)",
    re.DOTALL,
)
_HEADLINE_OPS = (
    "prune_tokens-Qwen2-7B-F16-bfloat16",
    "select_dynamic-SigLIP-so400m-384-F16-bfloat16",
    "merge_tokens-SigLIP-so400m-384-F16-float32",
)
_OPS_WITH_TARGETS = (
    "select_dynamic",
    "prune_tokens",
    "gather_tokens",
    "merge_tokens",
    "topk_gather",
)
_TOWERS = ("siglip-so400m", "clip-l", "qwen2-vl")
# What is timed, its target as a share of dense's time, and its name in the results.
_TOWER_ROWS = (
    ("selective frame, one stream", 1 / 3.1, "selective_frame[float32-{}]"),
    ("selective frames, eight streams", 1 / 3, "selective_frames_of_eight_streams[float32-{}]"),
    ("cycle of 4, one stream", 0.5, "cycle[float32-{}-4]"),
    ("cycle of 4, eight streams in turn", 0.5, "cycle_of_eight_streams[float32-{}-4]"),
    ("cycle of 2, one stream", 0.67, "cycle[float32-{}-2]"),
    ("cycle of 2, eight streams in turn", 0.67, "cycle_of_eight_streams[float32-{}-2]"),
)


def main() -> int:
    """Fill every page; say which changed."""
    for name in PAGES:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"{name}: new figures")
    return 0


def filled(page: str) -> str:
    """Return a page with each of its tables made anew."""

    def fill(region: re.Match[str]) -> str:
        table = _TABLES[region["name"]]()
        return "\n".join((region["begin"], *table, "", region["end"]))

    return _REGION.sub(fill, page)


def headline() -> list[str]:
    """Return README's table: ours against the fastest plain way, with the others beside it."""
    ops, towers = _by_name(MACHINE), _by_name(f"{MACHINE}-towers")
    frame = towers["selective_frame[float32-siglip-so400m]"]
    cycle = towers["cycle_of_eight_streams[float32-siglip-so400m-4]"]
    ratio, cap = frame.about["times_faster"], frame.about["cap"]
    saved, at_best = (_percent(cycle.about[key]) for key in ("times_faster", "cap"))
    rows = [
        (
            "a vision tower's frame, SigLIP-so400m size, float32",
            _plain_ways(frame),
            _ms(frame.ours),
            f"**{ratio:.1f}×** (the arithmetic's cap is {cap:.2f}×)",
        ),
        (
            "eight streams over a cycle, one refresh in four, in turn (2 layers, 32 frames)",
            _plain_ways(cycle),
            _ms(cycle.ours),
            f"**{saved}** (cap {at_best})",
        ),
        _clip(
            "`make demo`: SigLIP-base size, the sample clip, which ends in a pan; a frame", "demo"
        ),
        _clip("the same on the plain schedule", "demo-plain"),
    ]
    for name in _HEADLINE_OPS:
        result = ops[name]
        about = result.about
        size = f"{about['frames']} frames of {about['tokens']} × {about['channels']}"
        what = f"`{about['op']}`, {size}, {about['dtype']}"
        gain = f"**{result.times_faster_than(result.fastest):.1f}×**"
        rows.append((what, _plain_ways(result), _ms(result.ours), gain))
    return _table(
        ("measured on two CPU cores (AMD EPYC, AVX-512)", "plain PyTorch", "STC", "gain"), rows
    )


def _clip(what: str, name: str) -> tuple[str, str, str, str]:
    """Return the row of a run of `stc stream` on the sample clip."""
    run = json.loads(_path(f"{MACHINE}-{name}").read_text(encoding="utf-8"))
    summary = run["summary"]
    dense, ours = (summary[side]["mean"] for side in ("dense", "compressed"))
    refreshed = f"{summary['refreshes']} of {summary['frames']} refreshed"
    return (
        f"{what} ({refreshed})",
        f"{dense:.0f} ms dense, eager",
        f"{ours:.0f} ms",
        f"**{_percent(dense / ours)}**",
    )


def towers() -> list[str]:
    """Return the towers' table: times as fast, or time saved, and those of the least times."""
    kept = _by_name(f"{MACHINE}-towers")
    rows = []
    for what, share, name in _TOWER_ROWS:
        found = [kept[name.format(tower)] for tower in _TOWERS]
        show = _times if what.startswith("selective") else _percent
        caps = sorted({result.about["cap"] for result in found})
        cap = " to ".join(dict.fromkeys(show(value) for value in (caps[0], caps[-1])))
        cells = []
        for result in found:
            ratio, least = (result.about[k] for k in ("times_faster", "times_faster_of_minima"))
            met = 1 / ratio <= share
            cells.append(f"{'**' * met}{show(ratio)}{'**' * met} ({show(least)})")
        rows.append((what, show(1 / share), cap, *cells))
    table = _table(("", "target", "cap", "SigLIP-so400m", "CLIP-L", "Qwen2-VL"), rows)
    if not any("dense_compiled" in result.sides for result in kept.values()):
        table += ["", "In these results the dense side is eager alone."]
    return table


def ops(machine: str = MACHINE) -> list[str]:
    """Return the ops' table: how many times as fast as the fastest plain way, and as eager."""
    if not _path(machine).exists():
        return ["Not measured yet."]
    kept = _by_name(machine).values()
    rows = []
    for op in _OPS_WITH_TARGETS:
        for dtype in ("float32", "bfloat16"):
            timed = [
                result
                for result in kept
                if result.kind == "op"
                and result.about["default"]
                and (result.about["op"], result.about["dtype"]) == (op, dtype)
            ]
            timed.sort(key=lambda result: result.about["frames"])
            rows.append((f"`{op}`", dtype, *map(_against, timed)))
    return _table(("", "", "F 1", "F 16", "F 64"), rows)


def jax() -> list[str]:
    """Return the table of what a call from JAX costs."""
    kept = json.loads(_path("jax-call").read_text(encoding="utf-8"))
    return jax_table(kept["times"])


def jax_table(sizes: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Return the table of what `benchmarks.jax_call` timed: each side's shortest round, a size."""
    head = [words for side, words in _JAX_SIDES.items() if side in next(iter(sizes.values()))]
    rows = []
    for size, sides in sizes.items():
        cells = (_ms(sides[side]["best"]) for side in _JAX_SIDES if side in sides)
        rows.append((size.replace("x", " × "), *cells))
    return _table(("tokens [F, T, C]", *head), rows)


_USUAL = ("eager", "compiled", "float32", "dense", "dense_compiled")
_JAX_SIDES = {
    "torch": "torch",
    "arrays": "on arrays",
    "numpy": "`stc_numpy`",
    "jit": "under `jax.jit`",
    "jax": "JAX alone, jitted",
}
_TABLES: dict[str, Callable[[], list[str]]] = {
    "headline": headline,
    "towers": towers,
    "ops": ops,
    "ops_avx2": partial(ops, f"{MACHINE}-avx2"),
    "jax": jax,
}


def _path(name: str) -> Path:
    return RESULTS / f"{name}.json"


def _by_name(name: str) -> dict[str, Result]:
    return {result.name: result for result in load(_path(name)).results}


def _plain_ways(result: Result) -> str:
    """Return the time of the fastest plain way, and of the ways that most code is written."""
    usual = (side for side in result.plain if side in _USUAL)
    ways = dict.fromkeys((result.fastest, *usual))
    return "; ".join(f"{_ms(result.sides[way].median)} {words(way)}" for way in ways)


def _against(result: Result) -> str:
    ratio = f"{result.times_faster_than(result.fastest):.1f}× {words(result.fastest)}"
    eager = result.times_faster_than("eager")
    beside = "" if eager is None or result.fastest == "eager" else f" ({eager:.1f}× eager)"
    return ratio + beside


def _times(ratio: float) -> str:
    return f"{ratio:.2f}×"


def _percent(ratio: float) -> str:
    return f"{1 / ratio - 1:+.1%}".replace("-", "−")


def _ms(seconds: float) -> str:
    if seconds >= 10:
        return f"{seconds:.1f} s"
    return f"{1e3 * seconds:.0f} ms" if seconds >= 0.1 else f"{1e3 * seconds:.2g} ms"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return lines


if __name__ == "__main__":
    sys.exit(main())
