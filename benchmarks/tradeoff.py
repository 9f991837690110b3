"""What STC costs in closeness to dense, at which latency, and what else could be had for it.

    python -m benchmarks.tradeoff --save benchmarks/results/NAME-tradeoff
    python -m benchmarks.tradeoff --retime benchmarks/results/NAME-tradeoff.json  # latency again
    python -m benchmarks.tradeoff --small --latency benchmarks/results/NAME-tradeoff.json \\
        --save benchmarks/results/NAME-tradeoff-trained
    python -m benchmarks.tradeoff --draw benchmarks/results/NAME-tradeoff.json \\
        --figures docs/figures

Runs the sample clip, or a video, through a tower dense, with a Cacher over N and r, with whole
frames skipped (the last computed output again), with tokens merged within the frame, and by each
`--method` of `stc_stream.evaluate.methods`. Then times a few frames each way, in turns in one
process: a refresh and a selective frame as a ratio to dense, medians of the frames' own ratios; or
takes these ratios from another run, of a tower whose size is a real one. Writes NAME.json, NAME.md
and, beside them or to `--figures`, the figures of docs/tradeoff.md. Closeness is the same on a busy
machine; for latency, `--retime` on an idle one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.tradeoff_page import draw, label, markdown
from stc_stream.cacher.part import BatchRecord
from stc_stream.evaluate.clip import run_clip
from stc_stream.evaluate.fidelity import Fidelity
from stc_stream.evaluate.frames import ComparedFrame, FrameComparison
from stc_stream.evaluate.method import Method
from stc_stream.evaluate.methods import method_names, read_method
from stc_stream.evaluate.small_model import load_small_tower
from stc_stream.evaluate.timing import Timing
from stc_stream.report.document import machine
from stc_stream.report.versions import versions
from stc_stream.towers.load import ModelError, VisionModel, build_tower, load_tower
from stc_stream.towers.sizes import MODEL_SIZES
from stc_stream.video import VideoError, open_video
from stc_stream.video.sample import Clip, sample_clip

INTERVALS = (2, 4, 8)
RATIOS = (0.1, 0.25, 0.5)
MERGED = (16, 32, 64, 110)
"""Of `MERGED_OF` tokens; a tower that has fewer merges fewer."""
MERGED_OF = 576
THRESHOLDS = (0.98, 0.99, 0.995, 0.999)
CHANGES = (0.3, 0.6)


@dataclass(frozen=True)
class Row:
    """What one way to run the clip came to.

    Attributes:
        kind: "dense", "stc", "skip", "merge", "int8", "threshold" or "change"; "method" is one that
            was asked for by name.
        settings: what it was run with.
        whole: time of a frame computed whole over a dense one's.
        selective: time of any other frame over a dense one's.
        cosines: of each frame's features to the dense ones, mean over its patches.
        refreshes: frames that were computed whole.
        recomputed: share of a frame's tokens that were computed, mean over frames and layers.
    """

    kind: str
    settings: dict[str, Any]
    whole: float
    selective: float
    cosines: tuple[float, ...]
    refreshes: int
    recomputed: float

    @property
    def latency(self) -> float:
        """Time a frame over the dense tower's, over the whole clip."""
        frames = len(self.cosines)
        rest = frames - self.refreshes
        return (self.refreshes * self.whole + rest * self.selective) / frames

    @property
    def mean(self) -> float:
        """The cosine, mean over the frames."""
        return statistics.mean(self.cosines)

    @property
    def worst(self) -> float:
        """The frame that is furthest from dense."""
        return min(self.cosines)


@dataclass(frozen=True)
class Tradeoff:
    """All rows, with what they were measured on.

    Attributes:
        about: tower, weights, layers, clip, machine and versions.
        dense_ms: milliseconds a dense frame, median.
        rows: every way.
        same_choice: for each layer, the share of the chosen patches that 8-bit reference keys
            choose as well, mean over selective frames.
        fidelity: closeness by layer and by frames since the refresh, of the longest N at r=0.25.
    """

    about: dict[str, Any]
    dense_ms: float
    rows: tuple[Row, ...]
    same_choice: tuple[float, ...] = ()
    fidelity: Fidelity | None = None

    def of(self, kind: str) -> list[Row]:
        """Return the rows of a kind."""
        return [row for row in self.rows if row.kind == kind]

    def stc(self, interval: int, ratio: float) -> Row:
        """Return the row of a Cacher at N and r."""
        wanted = {"refresh_interval": interval, "update_ratio": ratio}
        return next(row for row in self.of("stc") if row.settings == wanted)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure or redraw; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tradeoff", description=__doc__)
    parser.add_argument("--tower", default="siglip-base", choices=MODEL_SIZES)
    parser.add_argument("--model", help="a SigLIP or CLIP model with its weights, instead")
    parser.add_argument(
        "--small", action="store_true", help="the small trained tower that ships with the package"
    )
    parser.add_argument("--layers", type=int, help="only the first N, of --tower")
    parser.add_argument("--video", metavar="FILE", help="instead of the sample clip")
    parser.add_argument("--fps", type=float, help="at most N frames a second, of --video")
    parser.add_argument("--frames", type=int, help="only the clip's first N")
    parser.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="NAME:SETTING=VALUE,...",
        help=f"beside the others, may be repeated: {', '.join(method_names())}",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--save", type=Path, metavar="PREFIX", help="write PREFIX.json, PREFIX.md")
    parser.add_argument("--retime", type=Path, metavar="FILE.json", help="only time it again")
    parser.add_argument(
        "--latency", type=Path, metavar="FILE.json", help="take latencies from there: time nothing"
    )
    parser.add_argument("--draw", type=Path, metavar="FILE.json", help="only draw what was kept")
    parser.add_argument(
        "--figures", type=Path, metavar="DIR", help="draw them there, not beside the JSON"
    )
    options = parser.parse_args(arguments)
    if options.draw is not None:
        draw(load(options.draw), options.figures or options.draw.parent)
        return 0
    kept = None if options.retime is None else load(options.retime)
    where = {"device": options.device, "dtype": options.dtype}
    try:
        if options.small:
            tower = load_small_tower(**where)
        elif options.model is not None:
            tower = load_tower(options.model, **where)
        else:
            layers = options.layers if kept is None else kept.about["layers"]
            tower = build_tower(options.tower, layers=layers, **where)
    except (ModelError, ValueError) as error:
        print(f"tradeoff: {error}", file=sys.stderr)
        return 2
    if kept is not None and kept.about["tower"] != tower.name:
        what = f"{options.retime} is of {kept.about['tower']}, not of {tower.name}"
        print(f"tradeoff: {what}: choose --tower or --model", file=sys.stderr)
        return 2
    try:
        clip = _clip(options.video, options.fps, options.frames)
        found = kept or measure(tower, clip, options.method, _tell)
        if options.latency is None:
            found = with_latency(found, tower)
        else:
            found = with_latency_of(found, load(options.latency), tower)
    except (TypeError, ValueError, VideoError) as error:
        print(f"tradeoff: {error}", file=sys.stderr)
        return 2
    print(markdown(found))
    prefix = options.save if kept is None else options.retime.with_suffix("")
    if prefix is not None:
        save(found, prefix)
        draw(found, options.figures or prefix.parent)
    return 0


def measure(
    tower: VisionModel,
    clip: Clip,
    methods: Sequence[str] = (),
    tell: Callable[[str], object] = str,
) -> Tradeoff:
    """Run a clip every way, and see how close each stays to dense.

    Args:
        tower: whose frames are not packed.
        clip: at least one frame.
        methods: more of them, as `read_method` takes them.
        tell: told how it gets on.

    Raises:
        TypeError: a tower that a method can't run.
        ValueError: there is no such method.
    """
    ways = _ways(tower.tokens)
    ways += [Way("method", {"method": text}) for text in methods]
    full, int8 = ways.index(Way("stc", _MIDDLE)), ways.index(Way("int8", _MIDDLE))
    same: list[list[float]] = []
    seen = 0

    def see(frame: ComparedFrame) -> None:
        nonlocal seen
        if seen % _MIDDLE["refresh_interval"]:
            same.append(_same_choice(tower, frame.runs[full].record, frame.runs[int8].record))
        seen += 1
        tell(f"frame {seen} of {len(clip.images)}")

    runs = run_clip(tower, [way.method() for way in ways], _inputs(tower, clip), see)
    count = len(clip.images)
    rows = [Row("dense", {}, 1.0, 0.0, (1.0,) * count, count, 1.0)]
    for way, run in zip(ways, runs, strict=True):
        computed = statistics.fmean(run.shares)
        rows.append(Row(way.kind, way.settings, 0.0, 0.0, run.cosines, sum(run.whole), computed))
    return Tradeoff(
        about={
            "tower": tower.name,
            "weights": tower.weights,
            "layers": tower.layers,
            "tokens": tower.tokens,
            "clip": clip.name,
            "frames": count,
        },
        dense_ms=0.0,
        rows=tuple(sorted(rows, key=lambda row: _ORDER.index(row.kind))),
        same_choice=tuple(statistics.mean(layer) for layer in zip(*same, strict=True)),
        fidelity=_by_layer(tower, clip),
    )


def with_latency(found: Tradeoff, tower: VisionModel, frames: int = 9) -> Tradeoff:
    """Return the trade-off with its latencies, of this machine as it is now.

    Args:
        found: from `measure`.
        tower: the same tower.
        frames: how many are timed each way, in turns.
    """
    # A refresh and a selective frame take as long at every interval.
    ways = {way.key: way for way in (Way(row.kind, row.settings).at(4) for row in found.rows)
            if way.kind not in ("dense", "skip")}  # fmt: skip
    clip = sample_clip(frames)
    runs = run_clip(tower, [way.method() for way in ways.values()], _inputs(tower, clip))
    ratios = {
        key: (run.time_ratio(whole=True) or 0.0, run.time_ratio(whole=False) or 0.0)
        for key, run in zip(ways, runs, strict=True)
    }
    rows = []
    for row in found.rows:
        # What is skipped costs nothing.
        whole, selective = ratios.get(Way(row.kind, row.settings).key, (1.0, 0.0))
        rows.append(replace(row, whole=whole, selective=selective))
    about = {**found.about, "machine": machine(tower), "versions": dict(versions())}
    dense_ms = 1e3 * Timing.of(runs[0].dense_seconds).median
    return replace(found, about=about, dense_ms=dense_ms, rows=tuple(rows))


def with_latency_of(found: Tradeoff, timed: Tradeoff, tower: VisionModel) -> Tradeoff:
    """Return a trade-off with the latencies of another tower's.

    Args:
        found: from `measure`.
        timed: from `with_latency`, of a tower whose size is a real one.
        tower: of `found`.

    Raises:
        ValueError: `timed` lacks one of the ways.
    """

    def key(row: Row, tokens: int) -> str:
        if row.kind != "merge":
            return Way(row.kind, row.settings).key
        return f"merge {row.settings['merged'] / tokens:.2f}"

    ratios = {key(row, timed.about["tokens"]): (row.whole, row.selective) for row in timed.rows}
    rows = []
    for row in found.rows:
        same = key(row, found.about["tokens"])
        if same not in ratios:
            raise ValueError(f"{timed.about['tower']} was not timed with {label(row)}")
        whole, selective = ratios[same]
        rows.append(replace(row, whole=whole, selective=selective))
    about = {
        **found.about,
        "machine": timed.about["machine"],
        "versions": timed.about["versions"],
        "timed": f"{timed.about['layers']} layers of {timed.about['tower']}",
    }
    return replace(found, about=about, dense_ms=timed.dense_ms, rows=tuple(rows))


def save(found: Tradeoff, prefix: Path) -> None:
    """Write what was measured as JSON and as a page."""
    content = asdict(found)
    for row in content["rows"]:
        row["cosines"] = [round(value, 6) for value in row["cosines"]]
        row |= {name: float(f"{row[name]:.4g}") for name in ("whole", "selective", "recomputed")}
    prefix.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False)
    written = prefix.with_name(prefix.name + ".json")
    written.write_text(text + "\n", encoding="utf-8")
    # Of the rounded numbers, so that it can be made again.
    prefix.with_name(prefix.name + ".md").write_text(markdown(load(written)), encoding="utf-8")


def load(path: Path) -> Tradeoff:
    """Read what `save` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = tuple(Row(**{**row, "cosines": tuple(row["cosines"])}) for row in content.pop("rows"))
    same = tuple(content.pop("same_choice"))
    fidelity = content.pop("fidelity", None)
    if fidelity is not None:
        layers = tuple(map(tuple, fidelity.pop("layers")))
        rest = {name: tuple(values) for name, values in fidelity.items()}
        fidelity = Fidelity(layers=layers, **rest)
    return Tradeoff(rows=rows, same_choice=same, fidelity=fidelity, **content)


@dataclass(frozen=True)
class Way:
    """A way to run the clip.

    Attributes:
        kind, settings: as in `Row`.
    """

    kind: str
    settings: dict[str, Any]

    @property
    def key(self) -> str:
        """What tells ways apart that differ in more than their refresh interval."""
        rest = {name: each for name, each in self.settings.items() if name != "refresh_interval"}
        return json.dumps([self.kind, rest], sort_keys=True)

    def at(self, interval: int) -> Way:
        """Return it with another refresh interval, if it has one."""
        if "refresh_interval" not in self.settings:
            return self
        return replace(self, settings={**self.settings, "refresh_interval": interval})

    def method(self) -> Method:
        """Return the method that runs it.

        Raises:
            ValueError: there is no such method.
        """
        if self.kind == "method":
            return read_method(self.settings["method"])
        settings = {**_FIXED.get(self.kind, {}), **self.settings}
        written = ",".join(f"{name}={value}" for name, value in settings.items())
        return read_method(f"{_NAMES.get(self.kind, 'stc')}:{written}")


_ORDER = ("dense", "stc", "int8", "threshold", "change", "skip", "merge", "method")
_NAMES = {"skip": "skip", "merge": "merge"}
_FIXED = {
    "stc": {"refresh_on_change": "none"},
    "int8": {"refresh_on_change": "none", "reference_keys": "int8"},
    "threshold": {"refresh_on_change": "none", "update_ratio": 1.0},
}
_MIDDLE = {"refresh_interval": 4, "update_ratio": 0.25}


def _ways(tokens: int) -> list[Way]:
    ways = []
    for interval in INTERVALS:
        at = {"refresh_interval": interval}
        ways += [Way("stc", {**at, "update_ratio": ratio}) for ratio in RATIOS]
        ways.append(Way("skip", at))
    ways.append(Way("int8", _MIDDLE))
    merged = dict.fromkeys(max(1, each * tokens // MERGED_OF) for each in MERGED)
    ways += [Way("merge", {"merged": each}) for each in merged]
    ways += [Way("threshold", {"refresh_interval": 4, "threshold": each}) for each in THRESHOLDS]
    for change in CHANGES:
        settings = {"refresh_interval": 8, "update_ratio": 0.25, "refresh_on_change": change}
        ways.append(Way("change", settings))
    return ways


def _clip(video: str | None, fps: float | None, frames: int | None) -> Clip:
    if video is None:
        return sample_clip(frames)
    with open_video(video, fps=fps, frames=frames) as opened:
        return Clip(opened.name, tuple(frame.image for frame in opened))


def _by_layer(tower: VisionModel, clip: Clip) -> Fidelity | None:
    interval = {"refresh_interval": max(INTERVALS), "update_ratio": 0.25}
    with FrameComparison(tower, [Way("stc", interval).method()], layers=True) as comparison:
        for inputs in _inputs(tower, clip):
            comparison.step(inputs)
        return comparison.fidelity[0]


def _inputs(tower: VisionModel, clip: Clip) -> Iterator[dict[str, Tensor]]:
    return (tower.batch([image]) for image in clip.images)


def _same_choice(tower: VisionModel, one: BatchRecord, other: BatchRecord) -> list[float]:
    """Return, by layer, the share of the patches that `one` recomputed which `other` did too."""
    shares = []
    for ours, theirs in zip(one.layers, other.layers, strict=True):
        chosen, again = (x.recomputed[0, tower.prefix_tokens :] for x in (ours, theirs))
        shares.append(float((chosen & again).sum() / chosen.sum()))
    return shares


def _tell(words: str) -> None:
    print(words, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
