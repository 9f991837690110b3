"""What a frame and a question cost as a stream grows, by memory: time, and bytes held.

    python -m benchmarks.stream_length --save PREFIX           # writes PREFIX.json
    python -m benchmarks.stream_length --draw JSON docs/figures

Feeds frames one by one to a session on a small LLaVA-OneVision with random weights (2 layers, 16
tokens a frame), one memory after the other, on one thread. Times are of the process, so that other
work on the machine counts for little. Each point is the median over the frames since the last one,
and the least of three questions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from stc_stream import (
    FullMemory,
    RecentMemory,
    RetrievalMemory,
    StreamingSession,
    WindowMemory,
)
from stc_stream.report.versions import processor, versions
from stc_stream.session.untrained import LlavaSizes, build_llava_onevision

MEMORIES: dict[str, Any] = {
    "recent": RecentMemory(4),
    "window": WindowMemory(64, 1024),
    "retrieval": RetrievalMemory(1024, 32),
    "full": FullMemory(),
}
FRAMES, EVERY = 5000, 100
FULL_FRAMES = 1000
"""The full memory's last frame: what it costs grows with each."""
QUESTION = "What is on the table?"


@dataclass(frozen=True)
class Point:
    """A stream after some frames.

    Attributes:
        memory: its name.
        frames: fed so far.
        frame_ms: of a frame, the median of those since the last point.
        question_ms: to the first token of an answer, the least of three.
        device_bytes, host_bytes: held.
    """

    memory: str
    frames: int
    frame_ms: float
    question_ms: float
    device_bytes: int
    host_bytes: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write, or draw what was measured; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stream_length", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--every", type=int, default=EVERY, help="frames between two points")
    parser.add_argument("--save", type=Path, metavar="PREFIX", help="write PREFIX.json")
    parser.add_argument("--draw", type=Path, nargs=2, metavar=("JSON", "FOLDER"))
    options = parser.parse_args(arguments)
    if options.draw is not None:
        draw(load(options.draw[0]), options.draw[1])
        return 0
    torch.set_num_threads(1)
    last = dict.fromkeys(MEMORIES, options.frames)
    last["full"] = min(options.frames, FULL_FRAMES)
    points = [point for name in MEMORIES for point in measure(name, last[name], options.every)]
    for point in points:
        if point.frames in (options.every, last[point.memory]):
            print(point)
    if options.save is not None:
        about = {"processor": processor(torch.device("cpu")), "threads": 1, "versions": versions()}
        document = {"about": about, "points": [asdict(point) for point in points]}
        text = json.dumps(document, indent=1) + "\n"
        options.save.with_name(options.save.name + ".json").write_text(text, encoding="utf-8")
    return 0


def measure(name: str, frames: int, every: int) -> list[Point]:
    """Feed a session with this memory, and ask it something every so many frames."""
    model, processor = build_llava_onevision(LlavaSizes(context=max(16 * frames + 200, 4096)))
    generator = torch.Generator().manual_seed(0)
    clip = torch.randint(0, 256, (64, 32, 32, 3), generator=generator, dtype=torch.uint8)
    points: list[Point] = []
    settings = {"memory": MEMORIES[name], "positions": "contiguous"}
    with StreamingSession(model, processor, **settings) as session:
        fed: list[float] = []

        def feed(number: int) -> None:
            session.feed(clip[number % 64][None])

        def ask() -> None:
            session.logits(QUESTION)

        for number in range(1, frames + 1):
            fed.append(milliseconds(lambda number=number: feed(number)))
            if number % every:
                continue
            # The first question after a frame is the one that prefills under `recent`.
            asked = [milliseconds(ask)]
            for more in (1, 2):
                if name == "recent":
                    feed(number + more)
                asked.append(milliseconds(ask))
            stats = session.stats
            points.append(
                Point(
                    name,
                    number,
                    statistics.median(fed),
                    min(asked),
                    stats.bytes_device,
                    stats.bytes_host,
                )
            )
            fed.clear()
            print(name, number, file=sys.stderr)
    return points


def milliseconds(call: Callable[[], None]) -> float:
    """Return the process's time in a call."""
    start = time.process_time()
    call()
    return 1e3 * (time.process_time() - start)


def load(path: Path) -> list[Point]:
    """Read points."""
    return [Point(**point) for point in json.loads(path.read_text(encoding="utf-8"))["points"]]


def draw(points: Sequence[Point], directory: Path) -> None:
    """Draw stream-length.svg."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.hashsalt": "stc", "svg.fonttype": "none", "font.size": 9}
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    for axes, title, read in (
        (panels[0], "a frame, ms of one thread", lambda point: point.frame_ms),
        (panels[1], "a question's first token, ms of one thread", lambda point: point.question_ms),
        (panels[2], "held, MB (dotted: host memory)", lambda point: point.device_bytes / 1e6),
    ):
        for number, name in enumerate(MEMORIES):
            own = [point for point in points if point.memory == name]
            frames = [point.frames for point in own]
            axes.plot(frames, [read(point) for point in own], color=f"C{number}", label=name)
            if axes is panels[2] and own and own[-1].host_bytes:
                held = [point.host_bytes / 1e6 for point in own]
                axes.plot(frames, held, ":", color=f"C{number}")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("frames")
        if axes is panels[2]:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    directory.mkdir(parents=True, exist_ok=True)
    figure.savefig(directory / "stream-length.svg", metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
