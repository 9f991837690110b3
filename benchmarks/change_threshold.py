"""How far frames may change before one is computed whole: the table behind `refresh_on_change`.

    python -m benchmarks.change_threshold CLIP ... --save benchmarks/results/NAME-change
    python -m benchmarks.change_threshold --cost    # what looking for changes takes

Runs each clip, at five frames a second, and a synthetic pan of 1, 2, 4 and 8 pixels a frame through
a small SigLIP tower with random weights: on the plain schedule, and with each threshold. Says which
share of the frames was computed whole, and the cosine to dense of the worst frame and of the mean
one. All of it is the same on a busy machine. Writes NAME.json and NAME.md. `--cost` times the
decision with and without looking at pixels, in turns in one process, against a selective frame.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stc_stream.cacher import Cacher, CacherConfig, attach_cacher
from stc_stream.evaluate.clip import run_clip
from stc_stream.evaluate.method import Method
from stc_stream.evaluate.timing import Turns, Variant, WallClock, timed
from stc_stream.evaluate.variants import shared_copy
from stc_stream.report.document import machine
from stc_stream.report.versions import versions
from stc_stream.towers.load import VisionModel, build_tower
from stc_stream.towers.sizes import MODEL_SIZES, TowerSizes
from stc_stream.video import open_video

THRESHOLDS = (0.3, 0.4, 0.5, 0.6)
PANS = (1, 2, 4, 8)
FPS = 5
MOST_FRAMES = 100
LAYERS, WIDTH, HEADS, SIDE, PATCH = 6, 192, 4, 224, 16


@dataclass(frozen=True)
class Row:
    """One clip on one schedule.

    Attributes:
        clip: its file's name, or the pan's speed.
        threshold: `refresh_on_change`; None: the plain schedule.
        frames: how many there were.
        refreshes: how many were computed whole.
        worst, mean: cosine of a frame's patches to the dense ones, of the worst frame and of all.
    """

    clip: str
    threshold: float | None
    frames: int
    refreshes: int
    worst: float
    mean: float

    @property
    def share(self) -> float:
        """Share of the frames that were computed whole."""
        return self.refreshes / self.frames


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all clips, print the table and write its files; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.change_threshold", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("clips", type=Path, nargs="*", metavar="CLIP", help="video files")
    parser.add_argument("--save", type=Path, metavar="PREFIX", help="write PREFIX.json, PREFIX.md")
    parser.add_argument("--cost", action="store_true", help="time the decision, run no clips")
    options = parser.parse_args(arguments)
    if options.cost:
        for geometry in ("siglip-base", "siglip-so400m"):
            print(cost(geometry), flush=True)
        return 0
    tower = small_tower()
    rows: list[Row] = []
    for name, frames in clips(tower, options.clips):
        rows += measure(tower, name, frames)
        print(f"{name}: {rows[-1].frames} frames", file=sys.stderr)
    about = {
        "tower": tower.name,
        "tokens": tower.tokens,
        "fps": FPS,
        "machine": machine(tower),
        "versions": versions(),
    }
    page = markdown(rows, about)
    print(page)
    if options.save is not None:
        document = {"about": about, "rows": [asdict(row) for row in rows]}
        text = json.dumps(document, indent=2) + "\n"
        options.save.with_name(options.save.name + ".json").write_text(text, encoding="utf-8")
        options.save.with_name(options.save.name + ".md").write_text(page, encoding="utf-8")
    return 0


def small_tower() -> VisionModel:
    """Return a SigLIP tower of 6 layers of 192 with random weights, the same each time."""
    sizes = TowerSizes("SigLIP", "SigLIP", SIDE, PATCH, WIDTH, HEADS, 4 * WIDTH, LAYERS)
    middle = (0.5, 0.5, 0.5)
    name = f"SigLIP, {LAYERS} layers of {WIDTH}, {SIDE} pixels, random weights (seed 0)"
    cpu, float32 = torch.device("cpu"), torch.float32
    return VisionModel(
        sizes.build(), name, False, SIDE, PATCH, WIDTH, LAYERS, middle, middle, cpu, float32
    )


def clips(tower: VisionModel, files: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """Give the name and the frames, [F, 3, side, side], of each file and each pan."""
    for file in files:
        with open_video(file, fps=FPS, frames=MOST_FRAMES) as opened:
            frames = [tower.pixel_values(tower.square(frame.image)) for frame in opened]
        yield file.name, torch.cat(frames)
    for speed in PANS:
        yield f"pan of {speed} pixels", pan(speed, tower.image_size)


def pan(speed: int, side: int, frames: int = 32) -> Tensor:
    """Return frames of a camera that turns over a still scene, [frames, 3, side, side]."""
    generator = torch.Generator().manual_seed(0)
    width = side + speed * (frames - 1)
    scene = torch.zeros(1, 3, side, width)
    # As in a photograph, the coarser the detail the stronger.
    for grain in (4, 8, 16, 32, 64):
        size = (side // grain + 2, width // grain + 2)
        noise = torch.randn(1, 3, *size, generator=generator)
        scene += grain * F.interpolate(noise, (side, width), mode="bicubic")
    scene /= 2 * scene.std()
    return torch.stack([scene[0, :, :, speed * n : speed * n + side] for n in range(frames)])


def measure(
    tower: VisionModel, clip: str, frames: Tensor, thresholds: Sequence[float] = THRESHOLDS
) -> list[Row]:
    """Run frames, [F, 3, side, side], on the plain schedule and with each threshold."""
    schedules = (None, *thresholds)
    methods = [Method(clip, CacherConfig(refresh_on_change=each)) for each in schedules]
    runs = run_clip(tower, methods, (tower.inputs(frame[None]) for frame in frames))
    return [
        Row(
            clip,
            threshold,
            len(frames),
            refreshes=sum(run.whole),
            worst=min(run.cosines),
            mean=statistics.fmean(run.cosines),
        )
        for threshold, run in zip(schedules, runs, strict=True)
    ]


@torch.inference_mode()
def cost(geometry: str, rounds: int = 15, layers: int = 2) -> str:
    """Say what the decision about one frame takes, against a selective frame of all layers.

    One layer's time is that of the last of `layers`; a frame is as many of them as the tower has.
    """
    tower = build_tower(geometry, layers=layers, device="cpu", dtype="float32")
    depth = MODEL_SIZES[geometry].layers
    frames = torch.randn(4, 3, tower.image_size, tower.image_size)
    with ExitStack() as stack:
        clocks: dict[bool, _PlanClock] = {}
        variants: dict[bool, Variant] = {}
        for watches in (False, True):
            module = shared_copy(tower.module)
            config = CacherConfig(refresh_interval=10**6, refresh_on_change=1 if watches else None)
            cacher = stack.enter_context(attach_cacher(module, config))
            module(frames[:1])
            clocks[watches] = stack.enter_context(_PlanClock(cacher))
            variants[watches] = _forwards(module, frames)
        turns = Turns(variants, WallClock())
        for _ in range(rounds):
            turns.run_round()
    # The least of the rounds: nothing else on the machine makes anything faster.
    extra = min(clocks[True].planning) - min(clocks[False].planning)
    frame = depth * min(clocks[False].layer + clocks[True].layer)
    return (
        f"{tower.name}: {1e6 * extra:.0f} µs a frame, {100 * extra / frame:.2f}% of a selective "
        f"frame's {1e3 * frame:.0f} ms ({torch.get_num_threads()} threads, float32)"
    )


def _forwards(module: torch.nn.Module, frames: Tensor) -> Variant:
    """Return what runs the next of some frames, over and over."""
    following = cycle(frames)
    return lambda: module(next(following)[None])


class _PlanClock:
    """Times the planning of each forward, and its last layer, in seconds."""

    def __init__(self, cacher: Cacher) -> None:
        self.planning: list[float] = []
        self.layer: list[float] = []
        self._layer, self._scheduler = cacher.tower.layers[-1].module, cacher._scheduler
        self._clock = WallClock()
        self._started = 0.0

    def __enter__(self) -> _PlanClock:
        plan = self._scheduler.plan

        def timed_plan(*given: Any) -> Any:
            plans, seconds = timed(lambda: plan(*given), self._clock)
            self.planning.append(seconds)
            return plans

        self._scheduler.plan = timed_plan
        self._hooks = (
            self._layer.register_forward_pre_hook(self._start),
            self._layer.register_forward_hook(self._stop),
        )
        return self

    def __exit__(self, *error: object) -> None:
        del self._scheduler.plan
        for hook in self._hooks:
            hook.remove()

    def _start(self, *given: object) -> None:
        self._started = self._clock()

    def _stop(self, *given: object) -> None:
        self.layer.append(self._clock() - self._started)


def markdown(rows: Sequence[Row], about: dict[str, Any]) -> str:
    """Return the table: a line a clip, a column a schedule."""
    thresholds = list(dict.fromkeys(row.threshold for row in rows))
    heads = ["plain" if each is None else f"τ {each:g}" for each in thresholds]
    lines = [
        "# Share of frames computed whole, and worst / mean cosine to dense",
        "",
        f"{about['tower']}; {about['fps']} frames a second; r = 0.25, N = 4; τ is "
        "`refresh_on_change`.",
        "",
        "| clip | frames | " + " | ".join(heads) + " |",
        "|---|---|" + "---|" * len(heads),
    ]
    for clip in dict.fromkeys(row.clip for row in rows):
        of = {row.threshold: row for row in rows if row.clip == clip}
        found = [of[threshold] for threshold in thresholds]
        cells = [f"{row.share:.2f}, {row.worst:.3f} / {row.mean:.3f}" for row in found]
        lines.append(f"| {clip} | {found[0].frames} | " + " | ".join(cells) + " |")
    made_with = ", ".join(
        f"{name} {number}" for name, number in about["versions"].items() if number
    )
    return "\n".join([*lines, "", f"{about['machine']['processor']}; {made_with}.", ""])


if __name__ == "__main__":
    sys.exit(main())
