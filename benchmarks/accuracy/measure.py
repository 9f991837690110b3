"""Measure a model: accuracy by task, baselines, and what the Cacher costs in answers.

python -m benchmarks.accuracy.measure --state build/accuracy --split test --json dense.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from benchmarks.accuracy.features import pooled_tokens
from benchmarks.accuracy.llm import Batch, answers_right, encode_questions
from benchmarks.accuracy.loop import StateError, restore
from benchmarks.accuracy.model import TOKENS, build_model, llm_weights, tower_weights
from benchmarks.accuracy.tower import Heads
from stc_stream import CacherConfig, attach_cacher
from stc_stream.evaluate.fidelity import token_cosines
from stc_stream.evaluate.scenes import TASKS, Clip, make_clip

TOGETHER = 10
"""Clips that are answered in one pass."""

Right = list[list[bool]]
"""Whether each question of each clip was answered right."""


@dataclass(frozen=True)
class Share:
    """How many of some questions were answered right.

    Attributes:
        asked, right: how many.
        percent: of those asked, 0 to 100; None: nothing was asked.
        low, high: its 95% interval, in percent; None: fewer than two clips were asked about.
    """

    asked: int
    right: int
    percent: float | None
    low: float | None
    high: float | None


def main() -> int:
    arguments = _arguments()
    torch.set_num_threads(1)
    try:
        model, stages = load(arguments.state, arguments.name)
    except StateError as error:
        print(error, file=sys.stderr)
        return 1
    clips = [make_clip(arguments.split, number) for number in range(arguments.clips)]
    dense = [pooled_tokens(model, clip.frames) for clip in clips]
    rows = {
        "dense": right_answers(model, clips, dense),
        "blind": right_answers(model, clips, of_another_clip(dense)),
        "last frame": right_from_last_frame(model, clips, dense),
        "shuffled": right_answers(model, clips, shuffled(dense, seed=0)),
    }
    configs = {"Cacher, plain": CacherConfig.paper(), "Cacher, default": CacherConfig()}
    closeness = {}
    for name, config in configs.items():
        cached = cached_tokens(model, clips, config)
        rows[name] = right_answers(model, clips, cached)
        close = token_cosines(torch.cat(cached), torch.cat(dense)).mean(-1)
        closeness[name] = {"mean": float(close.mean()), "worst frame": float(close.min())}
    counted = count(clips, rows)
    for file, (steps, minutes) in stages.items():
        print(f"{file}: {steps} steps, {minutes:.0f} minutes")
    for name, cosine in closeness.items():
        print(
            f"{name}: cosine of a frame's tokens to dense: mean {cosine['mean']:.4f}, "
            f"worst {cosine['worst frame']:.4f}"
        )
    print(table(counted))
    if arguments.json is not None:
        found = {
            "model": arguments.name,
            "split": arguments.split,
            "clips": len(clips),
            "stages": {
                Path(file).stem: {"steps": steps, "minutes": round(minutes, 1)}
                for file, (steps, minutes) in stages.items()
            },
            "closeness": closeness,
            "rows": counted,
        }
        write_json(found, arguments.json)
    return 0


def load(
    state: Path, name: str
) -> tuple[LlavaOnevisionForConditionalGeneration, dict[str, tuple[int, float]]]:
    """Read the weights saved last, trained to the end or not.

    Args:
        state: folder of the training.
        name: which LLM, `"dense"` or `"gaps"`.

    Returns:
        The model, and the steps and minutes of each file's training.

    Raises:
        StateError: a file isn't there, or is damaged.
    """
    model = build_model(0)
    stages = {
        "tower.pt": [*tower_weights(model), *Heads().parameters()],
        f"{name}.pt": llm_weights(model),
    }
    done = {}
    for file, weights in stages.items():
        steps, seconds = restore(state / file, weights)
        done[file] = steps, seconds / 60
    return model, done


def right_answers(
    model: LlavaOnevisionForConditionalGeneration, clips: Sequence[Clip], tokens: Sequence[Tensor]
) -> Right:
    """Answer every question of clips.

    Args:
        model: answers.
        clips: with their questions, as many frames each.
        tokens: what the LLM sees of each clip, [F, TOKENS, WIDTH].
    """
    found: Right = []
    for first in range(0, len(clips), TOGETHER):
        video = torch.stack(list(tokens[first : first + TOGETHER])).flatten(1, 2)
        places = torch.arange(video.shape[1]).expand(len(video), -1)
        asked = [list(clip.questions) for clip in clips[first : first + TOGETHER]]
        right = answers_right(model, Batch(video, places, *encode_questions(asked)))
        found += [row[: len(several)].tolist() for row, several in zip(right, asked, strict=True)]
    return found


def right_from_last_frame(
    model: LlavaOnevisionForConditionalGeneration, clips: Sequence[Clip], tokens: Sequence[Tensor]
) -> Right:
    """Answer every question from the frame that it is asked after alone, as a clip of one frame."""
    found: Right = []
    for clip, frames in zip(clips, tokens, strict=True):
        asked = [[replace(question, frame=0)] for question in clip.questions]
        video = frames[[question.frame for question in clip.questions]]
        places = torch.arange(TOKENS).expand(len(asked), -1)
        right = answers_right(model, Batch(video, places, *encode_questions(asked)))
        found.append(right[:, 0].tolist())
    return found


def of_another_clip(tokens: Sequence[Tensor]) -> list[Tensor]:
    """Return for each clip what the LLM sees of the next, so that it is blind to its own."""
    return [*tokens[1:], *tokens[:1]]


def shuffled(tokens: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Return each clip's frames in a random order."""
    generator = torch.Generator().manual_seed(seed)
    return [frames[torch.randperm(len(frames), generator=generator)] for frames in tokens]


def cached_tokens(
    model: LlavaOnevisionForConditionalGeneration, clips: Sequence[Clip], config: CacherConfig
) -> list[Tensor]:
    """Return what the LLM sees of clips, encoded frame after frame through a Cacher."""
    found = []
    with attach_cacher(model.model.vision_tower, config) as cacher:
        for clip in clips:
            found.append(torch.cat([pooled_tokens(model, frame[None]) for frame in clip.frames]))
            cacher.reset()
    return found


def count(clips: Sequence[Clip], rows: Mapping[str, Right]) -> dict[str, dict[str, Share]]:
    """Count right answers for each row: by task, over all, and of questions about the past.

    The last group, `memory`, is of the questions that the last frame isn't enough for.
    """
    asked = [question for clip in clips for question in clip.questions]
    clip_of = np.repeat(np.arange(len(clips)), [len(clip.questions) for clip in clips])
    tasks = np.array([question.task for question in asked])
    memory = np.array([not question.in_last_frame for question in asked])
    groups = {task: tasks == task for task in TASKS}
    groups |= {"all": np.ones(len(asked), bool), "memory": memory}
    found = {}
    for name, right in rows.items():
        flat = np.array([each for several in right for each in several])
        found[name] = {g: share(flat[chosen], clip_of[chosen]) for g, chosen in groups.items()}
    return found


def share(right: NDArray[np.bool_], clip: NDArray[np.int64]) -> Share:
    """Return the share of questions answered right, with an interval.

    Questions about one clip may stand or fall together, so the variance is that of a ratio of sums
    over clips (the linearised variance of cluster sampling), not that of as many single draws.

    Args:
        right: bool [Q].
        clip: int64 [Q], the clip of each question.
    """
    if not len(right):
        return Share(0, 0, None, None, None)
    mean = float(right.mean())
    _, place = np.unique(clip, return_inverse=True)
    apart = np.bincount(place, right - mean)
    percent, clips = 100 * mean, len(apart)
    if clips < 2:
        return Share(len(right), int(right.sum()), percent, None, None)
    wide = 196 * float(np.sqrt(clips / (clips - 1) * np.square(apart).sum())) / len(right)
    low, high = max(0.0, percent - wide), min(100.0, percent + wide)
    return Share(len(right), int(right.sum()), percent, low, high)


def table(rows: Mapping[str, Mapping[str, Share]]) -> str:
    """Return percent right and half the width of the interval, a line a row."""
    first = next(iter(rows.values()))
    lines = [
        " " * 15 + "".join(f"{group:>11}" for group in first),
        f"{'questions':>15}" + "".join(f"{cell.asked:11}" for cell in first.values()),
    ]
    lines += [
        f"{name:>15}" + "".join(f"{words(cell):>11}" for cell in cells.values())
        for name, cells in rows.items()
    ]
    return "\n".join(lines)


def words(cell: Share) -> str:
    """Return a share as it stands in a table: percent, and how far the interval reaches."""
    if cell.percent is None:
        return "–"
    if cell.low is None or cell.high is None:
        return f"{cell.percent:.1f}"
    return f"{cell.percent:.1f} ±{max(cell.percent - cell.low, cell.high - cell.percent):.1f}"


def write_json(found: dict[str, Any], file: Path) -> None:
    """Write what was measured."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = {
        name: {group: asdict(cell) for group, cell in cells.items()}
        for name, cells in found["rows"].items()
    }
    text = json.dumps({**found, "rows": rows}, indent=1)
    file.write_text(text + "\n", encoding="utf-8")


def read_json(file: Path) -> dict[str, Any]:
    """Read what `write_json` wrote."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    rows = {
        name: {group: Share(**cell) for group, cell in cells.items()}
        for name, cells in found["rows"].items()
    }
    return {**found, "rows": rows}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--state", type=Path, default=Path("build/accuracy"), help="folder of the training"
    )
    parser.add_argument("--name", choices=("dense", "gaps"), default="dense", help="which LLM")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
