"""What STC costs in closeness to dense, at which latency, and what else could be had for it.

    python -m benchmarks.tradeoff --save benchmarks/results/NAME-tradeoff
    python -m benchmarks.tradeoff --retime benchmarks/results/NAME-tradeoff.json  # latency again
    python -m benchmarks.tradeoff --draw benchmarks/results/NAME-tradeoff.json    # figures again

Runs the sample clip through a tower dense, with a Cacher over N and r, with whole frames skipped
(the last refreshed output again), and with tokens merged within the frame (ToMe). Then times a few
frames each way, in turns in one process: a refresh and a selective frame as a ratio to dense,
medians of the frames' own ratios. Writes NAME.json, NAME.md and the figures of docs/tradeoff.md.
Closeness is the same on a busy machine; for latency, `--retime` on an idle one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stc_stream.cacher import Cacher, CacherConfig, Recording, attach_cacher
from stc_stream.evaluate.methods.merge import TokenMerging
from stc_stream.evaluate.timing import WallClock, timed
from stc_stream.evaluate.variants import shared_copy
from stc_stream.report.document import machine
from stc_stream.report.versions import versions
from stc_stream.towers.load import ModelError, VisionModel, build_tower, load_tower
from stc_stream.towers.sizes import MODEL_SIZES
from stc_stream.video.sample import sample_clip

INTERVALS = (2, 4, 8)
RATIOS = (0.1, 0.25, 0.5)
MERGED = (16, 32, 64, 110)
THRESHOLDS = (0.98, 0.99, 0.995, 0.999)
CHANGES = (0.3, 0.6)
FIGURES = Path(__file__).parents[1] / "docs" / "figures"


@dataclass(frozen=True)
class Row:
    """One way to run the clip.

    Attributes:
        kind: "dense", "stc", "skip", "merge", "int8", "threshold" or "change".
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
    """

    about: dict[str, Any]
    dense_ms: float
    rows: tuple[Row, ...]
    same_choice: tuple[float, ...] = ()

    def of(self, kind: str) -> list[Row]:
        """Return the rows of a kind."""
        return [row for row in self.rows if row.kind == kind]

    def stc(self, interval: int, ratio: float) -> Row:
        """Return the row of a Cacher at N and r."""
        wanted = {"refresh_interval": interval, "update_ratio": ratio}
        return next(row for row in self.of("stc") if row.settings == wanted)


@dataclass(frozen=True)
class Times:
    """What the ways take, whatever their refresh interval.

    Attributes:
        dense_ms: milliseconds a dense frame, median.
        ratios: for each way, the time of a frame computed whole and of any other over dense.
    """

    dense_ms: float
    ratios: dict[str, tuple[float, float]]

    def put_in(self, row: Row) -> Row:
        """Return a row with its times."""
        whole, selective = self.ratios.get(_key(row.kind, row.settings), (1.0, 0.0))
        return replace(row, whole=whole, selective=selective)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure or redraw; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tradeoff", description=__doc__)
    parser.add_argument("--tower", default="siglip-base", choices=MODEL_SIZES)
    parser.add_argument("--model", help="a SigLIP or CLIP model with its weights, instead")
    parser.add_argument("--layers", type=int, help="only the first so many, of --tower")
    parser.add_argument("--frames", type=int, help="only the clip's first so many")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--save", type=Path, metavar="PREFIX", help="write PREFIX.json, PREFIX.md")
    parser.add_argument("--retime", type=Path, metavar="FILE.json", help="only time it again")
    parser.add_argument("--draw", type=Path, metavar="FILE.json", help="only draw what was kept")
    parser.add_argument("--figures", type=Path, default=FIGURES, metavar="DIR")
    options = parser.parse_args(arguments)
    if options.draw is not None:
        draw(load(options.draw), options.figures)
        return 0
    kept = None if options.retime is None else load(options.retime)
    where = {"device": options.device, "dtype": options.dtype}
    try:
        if options.model is not None:
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
    found = kept or measure(tower, options.frames, lambda words: print(words, file=sys.stderr))
    found = with_latency(found, tower)
    print(markdown(found))
    prefix = options.save if kept is None else options.retime.with_suffix("")
    if prefix is not None:
        save(found, prefix)
        draw(found, options.figures)
    return 0


@torch.no_grad()
def measure(
    tower: VisionModel, frames: int | None = None, tell: Callable[[str], object] = str
) -> Tradeoff:
    """Run the clip every way, and see how close each stays to dense.

    Args:
        tower: whose frames are not packed.
        frames: only the first so many.
        tell: told how it gets on.
    """
    clip = sample_clip(frames)
    ways = [way for interval in INTERVALS for way in _at(tower, interval)]
    settings = {"refresh_interval": 4, "update_ratio": 0.25}
    full = _CacherWay("", settings, tower, CacherConfig.paper(0.25, 4), record=True)
    config = CacherConfig.paper(0.25, 4, reference_keys="int8")
    int8 = _CacherWay("int8", settings, tower, config, record=True)
    same: list[list[float]] = []
    for number, image in enumerate(clip.images):
        inputs = tower.batch([image])
        dense = _dense(tower, inputs)
        for way in (*ways, full, int8):
            way.step(number, inputs, dense)
        if number % 4:
            same.append(_same_choice(tower, full.recording, int8.recording))
        tell(f"frame {number + 1} of {len(clip.images)}")
    count = len(clip.images)
    rows = [Row("dense", {}, 1.0, 0.0, (1.0,) * count, count, 1.0)]
    rows += [way.row() for way in (*ways, int8)]
    order = ("dense", "stc", "int8", "threshold", "change", "skip", "merge")
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
        rows=tuple(sorted(rows, key=lambda row: order.index(row.kind))),
        same_choice=tuple(statistics.mean(layer) for layer in zip(*same, strict=True)),
    )


@torch.no_grad()
def with_latency(found: Tradeoff, tower: VisionModel, frames: int = 9) -> Tradeoff:
    """Return the trade-off with its latencies, of this machine as it is now.

    Args:
        found: from `measure`.
        tower: the same tower.
        frames: how many are timed each way, in turns.
    """
    images = sample_clip(frames + 1).images
    ways = [way for way in _at(tower, 4, every=True) if not isinstance(way, _SkipWay)]
    ways.append(_CacherWay("int8", {"refresh_interval": 4, "update_ratio": 0.25}, tower,
                           CacherConfig.paper(0.25, 4, reference_keys="int8")))  # fmt: skip
    clock = WallClock(tower.device)
    seconds: list[float] = []
    ratios: dict[str, dict[bool, list[float]]] = {way.key: {} for way in ways}
    for number, image in enumerate(images):
        inputs = tower.batch([image])
        _, dense = timed(partial(_dense, tower, inputs), clock)
        seconds.append(dense)
        for way in ways:
            # Frame 0 warms up; the next is a refresh again.
            if number == 1:
                way.reset()
            _, taken = timed(partial(way.run, number, inputs), clock)
            sort = way.whole(number)
            if number:
                ratios[way.key].setdefault(sort, []).append(taken / dense)
    medians = {
        key: tuple(statistics.median(sorts.get(sort, [0.0])) for sort in (True, False))
        for key, sorts in ratios.items()
    }
    times = Times(1e3 * statistics.median(seconds[1:]), medians)
    about = {**found.about, "machine": machine(tower), "versions": dict(versions())}
    rows = tuple(times.put_in(row) for row in found.rows)
    return replace(found, about=about, dense_ms=times.dense_ms, rows=rows)


def save(found: Tradeoff, prefix: Path) -> None:
    """Write what was measured as JSON and as a page."""
    content = asdict(found)
    for row in content["rows"]:
        row["cosines"] = [round(value, 6) for value in row["cosines"]]
        row |= {name: float(f"{row[name]:.4g}") for name in ("whole", "selective", "recomputed")}
    prefix.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False)
    prefix.with_name(prefix.name + ".json").write_text(text + "\n", encoding="utf-8")
    prefix.with_name(prefix.name + ".md").write_text(markdown(found), encoding="utf-8")


def load(path: Path) -> Tradeoff:
    """Read what `save` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = tuple(Row(**{**row, "cosines": tuple(row["cosines"])}) for row in content.pop("rows"))
    same = tuple(content.pop("same_choice"))
    return Tradeoff(rows=rows, same_choice=same, **content)


def markdown(found: Tradeoff) -> str:
    """Return all rows as a page."""
    about = found.about
    where = about["machine"]
    lines = [
        f"# {about['tower']}, {about['weights']}: closeness against latency",
        "",
        f"{about['layers']} layers, {about['tokens']} patches, {where['dtype']}; "
        f"{about['frames']} frames of {about['clip']}; dense {found.dense_ms:.0f} ms a frame. "
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
    """Draw tradeoff-heat.svg, tradeoff.svg and scene-cut.svg."""
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
    pair[0].legend(frameon=False, fontsize=8, loc="lower right")
    _write(figure, directory / "tradeoff.svg")

    figure, axes = pyplot.subplots(figsize=(10, 3), layout="constrained")
    _over_time(axes, found)
    _write(figure, directory / "scene-cut.svg")


class _Way:
    """A way to run the clip, frame by frame."""

    def __init__(self, kind: str, settings: dict[str, Any], tower: VisionModel) -> None:
        self.kind = kind
        self.settings = settings
        self.tower = tower
        self.refreshes = 0
        self.cosines: list[float] = []

    @property
    def key(self) -> str:
        return _key(self.kind, self.settings)

    def step(self, number: int, inputs: dict[str, Tensor], dense: Tensor) -> None:
        """Run a frame, and see how close it is to dense."""
        self.cosines.append(_cosine(self.tower, self.run(number, inputs), dense))
        self.refreshes += self.whole(number)

    def run(self, number: int, inputs: dict[str, Tensor]) -> Tensor:
        raise NotImplementedError

    def reset(self) -> None:
        """Begin anew."""

    def whole(self, number: int) -> bool:
        """Say whether the frame that has just run was computed whole; asked once a frame."""
        return False

    def recomputed(self) -> float:
        """Return the share of tokens that were computed."""
        raise NotImplementedError

    def row(self) -> Row:
        cosines = tuple(self.cosines)
        return Row(self.kind, self.settings, 0.0, 0.0, cosines, self.refreshes, self.recomputed())


class _CacherWay(_Way):
    def __init__(
        self,
        kind: str,
        settings: dict[str, Any],
        tower: VisionModel,
        config: CacherConfig,
        record: bool = False,
    ) -> None:
        super().__init__(kind, settings, tower)
        self._module = shared_copy(tower.module)
        self._cacher: Cacher = attach_cacher(self._module, config)
        self._record = record
        self._seen = 0
        self.recording = Recording()

    def run(self, number: int, inputs: dict[str, Tensor]) -> Tensor:
        tokens: Tensor
        if not self._record:
            tokens = self._module(**inputs).last_hidden_state
            return tokens
        with self._cacher.record() as self.recording:
            tokens = self._module(**inputs).last_hidden_state
        return tokens

    def reset(self) -> None:
        self._cacher.reset()

    def whole(self, number: int) -> bool:
        before, self._seen = self._seen, self._cacher.stats.refreshes
        return self._seen > before

    def recomputed(self) -> float:
        stats = self._cacher.stats
        return stats.tokens_recomputed / (stats.tokens_recomputed + stats.tokens_reused)


class _SkipWay(_Way):
    """Whole frames are skipped: the last output again, which costs nothing."""

    def __init__(self, tower: VisionModel, interval: int) -> None:
        super().__init__("skip", {"refresh_interval": interval}, tower)
        self._interval = interval

    def step(self, number: int, inputs: dict[str, Tensor], dense: Tensor) -> None:
        if self.whole(number):
            self._kept = dense
            self.refreshes += 1
        self.cosines.append(_cosine(self.tower, self._kept, dense))

    def whole(self, number: int) -> bool:
        return number % self._interval == 0

    def recomputed(self) -> float:
        return self.refreshes / len(self.cosines)


class _MergeWay(_Way):
    """Tokens are merged within the frame."""

    def __init__(self, tower: VisionModel, merged: int) -> None:
        super().__init__("merge", {"merged": merged}, tower)
        self._module = shared_copy(tower.module)
        self._merging = TokenMerging(merged).attach(self._module)

    def run(self, number: int, inputs: dict[str, Tensor]) -> Tensor:
        with self._merging.record() as record:
            tokens: Tensor = self._module(**inputs).last_hidden_state
        self._share = record.share[0]
        return tokens

    def recomputed(self) -> float:
        return self._share


def _at(tower: VisionModel, interval: int, every: bool = False) -> list[_Way]:
    """Return the ways with a refresh interval; `every`: all kinds, else each at its own."""
    ways: list[_Way] = []
    for ratio in RATIOS:
        settings = {"refresh_interval": interval, "update_ratio": ratio}
        ways.append(_CacherWay("stc", settings, tower, CacherConfig.paper(ratio, interval)))
    ways.append(_SkipWay(tower, interval))
    if every or interval == 4:
        ways += [_MergeWay(tower, merged) for merged in MERGED]
        for threshold in THRESHOLDS:
            settings = {"refresh_interval": interval, "threshold": threshold}
            config = CacherConfig.paper(1.0, interval, threshold=threshold)
            ways.append(_CacherWay("threshold", settings, tower, config))
    if every or interval == 8:
        for change in CHANGES:
            settings = {"refresh_interval": interval, "update_ratio": 0.25}
            settings["refresh_on_change"] = change
            config = CacherConfig(0.25, interval, refresh_on_change=change)
            ways.append(_CacherWay("change", settings, tower, config))
    return ways


def _key(kind: str, settings: dict[str, Any]) -> str:
    rest = {name: value for name, value in settings.items() if name != "refresh_interval"}
    return json.dumps([kind, rest], sort_keys=True)


def _dense(tower: VisionModel, inputs: dict[str, Tensor]) -> Tensor:
    tokens: Tensor = tower.module(**inputs).last_hidden_state
    return tokens


def _same_choice(tower: VisionModel, one: Recording, other: Recording) -> list[float]:
    """Return, by layer, the share of the patches that `one` recomputed which `other` did too."""
    shares = []
    for ours, theirs in zip(one.layers, other.layers, strict=True):
        chosen, again = (x.recomputed[0, tower.prefix_tokens :] for x in (ours, theirs))
        shares.append(float((chosen & again).sum() / chosen.sum()))
    return shares


def _cosine(tower: VisionModel, tokens: Tensor, dense: Tensor) -> float:
    one, other = (t[0, tower.prefix_tokens :].float() for t in (tokens, dense))
    return float(F.cosine_similarity(one, other, dim=-1).mean())


def _heat(
    axes: Any,
    found: Tradeoff,
    title: str,
    read: Callable[[Row], float],
    words: str,
    reverse: bool,
) -> None:
    values = [[read(found.stc(interval, ratio)) for ratio in RATIOS] for interval in INTERVALS]
    picture = axes.imshow(values, cmap="viridis_r" if reverse else "viridis", aspect="auto")
    low, high = picture.get_clim()
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            # White on the dark half of the colours.
            bright = (value - low) / max(high - low, 1e-12) > 0.5
            colour = "black" if bright != reverse else "white"
            axes.text(column, row, words.format(value), ha="center", va="center", color=colour)
    axes.set_xticks(range(len(RATIOS)), [f"{ratio:g}" for ratio in RATIOS])
    axes.set_yticks(range(len(INTERVALS)), [str(interval) for interval in INTERVALS])
    axes.set_xlabel("update ratio r")
    axes.set_ylabel("refresh interval N")
    axes.set_title(title, fontsize=10)


def _scatter(axes: Any, found: Tradeoff, title: str, read: Callable[[Row], float]) -> None:
    for interval, colour in zip(INTERVALS, ("#f3a361", "#c65a00", "#7a3500"), strict=True):
        rows = [found.stc(interval, ratio) for ratio in RATIOS]
        axes.plot(
            [row.latency for row in rows],
            [read(row) for row in rows],
            "o-",
            color=colour,
            label=f"STC, N={interval}, r={', '.join(f'{ratio:g}' for ratio in RATIOS)}",
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


def _write(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
