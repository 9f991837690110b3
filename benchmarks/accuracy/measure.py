"""Measure a model: accuracy by task, baselines, and what the Cacher costs in answers.

python -m benchmarks.accuracy.measure --state build/accuracy --split validation --clips 300
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from benchmarks.accuracy.features import pooled_tokens
from benchmarks.accuracy.llm import Batch, answers_right, encode_questions
from benchmarks.accuracy.loop import StateError, restore
from benchmarks.accuracy.model import TOKENS, build_model, llm_weights, tower_weights
from benchmarks.accuracy.tower import Heads
from stc_stream import CacherConfig, attach_cacher
from stc_stream.evaluate.scenes import TASKS, Clip, make_clip

TOGETHER = 10
"""Clips that are answered in one pass."""

Right = list[list[bool]]
"""Whether each question of each clip was answered right."""


def main() -> int:
    arguments = _arguments()
    torch.set_num_threads(1)
    try:
        model = load(arguments.state, arguments.name)
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
    for name, config in configs.items():
        cached = cached_tokens(model, clips, config)
        rows[name] = right_answers(model, clips, cached)
        close = torch.cosine_similarity(torch.cat(dense), torch.cat(cached), dim=-1).mean(-1)
        print(
            f"{name}: cosine of a frame's tokens to dense: mean {close.mean():.4f}, "
            f"worst {close.min():.4f}"
        )
    print(table(clips, rows))
    return 0


def load(state: Path, name: str) -> LlavaOnevisionForConditionalGeneration:
    """Return the model with the weights saved last, trained to the end or not.

    Args:
        state: folder of the training.
        name: which LLM, `"dense"` or `"gaps"`.

    Raises:
        StateError: a file isn't there, or is damaged.
    """
    model = build_model(0)
    stages = {
        "tower.pt": [*tower_weights(model), *Heads().parameters()],
        f"{name}.pt": llm_weights(model),
    }
    for file, weights in stages.items():
        step, seconds = restore(state / file, weights)
        print(f"{file}: {step} steps, {seconds / 60:.0f} minutes")
    return model


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


def table(clips: Sequence[Clip], rows: dict[str, Right]) -> str:
    """Return percent right by task, over all, and of what the last frame isn't enough for."""
    asked = [question for clip in clips for question in clip.questions]
    tasks = np.array([question.task for question in asked])
    memory = np.array([not question.in_last_frame for question in asked])
    groups = {task: tasks == task for task in TASKS}
    groups |= {"all": np.ones(len(asked), bool), "memory": memory}
    lines = [
        " " * 15 + "".join(f"{head:>9}" for head in groups),
        f"{'questions':>15}" + "".join(f"{group.sum():9}" for group in groups.values()),
    ]
    for name, right in rows.items():
        flat = np.array([each for several in right for each in several])
        cells = [
            f"{100 * flat[group].mean():9.1f}" if group.any() else f"{'–':>9}"
            for group in groups.values()
        ]
        lines.append(f"{name:>15}" + "".join(cells))
    return "\n".join(lines)


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
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
