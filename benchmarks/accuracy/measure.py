"""Measure a trained model: accuracy by task, the baselines, and what the Cacher costs in answers.

    python -m benchmarks.accuracy.measure --state build/accuracy --split validation --clips 300
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from benchmarks.accuracy.llm import Batch, answers_right, encode_questions, pooled_tokens
from benchmarks.accuracy.model import TOKENS, build_model
from stc_stream import CacherConfig, attach_cacher
from stc_stream.evaluate.scenes import TASKS, Clip, make_clip

TOGETHER = 10
"""Clips that are answered in one pass."""
Seen = Callable[[int, Tensor], Tensor]


def load(state: Path, name: str, seed: int) -> LlavaOnevisionForConditionalGeneration:
    """Return the model as it was saved last, trained to its end or not."""
    model = build_model(seed)
    core = model.model
    tower = [*core.vision_tower.parameters(), *core.multi_modal_projector.parameters()]
    llm = [*core.language_model.parameters(), *model.lm_head.parameters(), core.image_newline]
    for weights, file in ((tower, "tower.pt"), (llm, f"{name}.pt")):
        saved = torch.load(state / file, weights_only=True)
        print(f"{file}: step {saved['step']}, {saved['seconds'] / 60:.0f} minutes")
        for weight, value in zip(weights, saved["weights"], strict=False):
            weight.data.copy_(value)
    return model


def right_by_clip(
    model: LlavaOnevisionForConditionalGeneration,
    clips: Sequence[Clip],
    tokens: Sequence[Tensor],
    last_only: bool = False,
) -> list[list[bool]]:
    """Return whether each question of each clip is answered right.

    Args:
        model: answers.
        clips: with their questions.
        tokens: what the LLM sees of each clip, [F, TOKENS, WIDTH].
        last_only: whether a question sees the frame that it is asked after and no other, as its first.
    """
    found: list[list[bool]] = []
    if last_only:
        for clip, features in zip(clips, tokens, strict=True):
            asked = [[replace(question, frame=0)] for question in clip.questions]
            video = torch.stack([features[question.frame] for question in clip.questions])
            places = torch.arange(TOKENS).expand(len(asked), -1)
            right = answers_right(model, Batch(video, places, *encode_questions(asked)))
            found.append(right[:, 0].tolist())
        return found
    for first in range(0, len(clips), TOGETHER):
        some = clips[first : first + TOGETHER]
        video = torch.stack(list(tokens[first : first + TOGETHER])).flatten(1, 2)
        places = torch.arange(video.shape[1]).expand(len(some), -1)
        asked = [list(clip.questions) for clip in some]
        right = answers_right(model, Batch(video, places, *encode_questions(asked)))
        found += [row[: len(several)].tolist() for row, several in zip(right, asked, strict=True)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--state", type=Path, default=Path("build/accuracy"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", choices=("dense", "gaps"), default="dense")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--clips", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load(arguments.state, arguments.name, arguments.seed)
    clips = [make_clip(arguments.split, number) for number in range(arguments.clips)]
    tower = model.model.vision_tower

    dense = [pooled_tokens(model, clip.frames) for clip in clips]
    generator = torch.Generator().manual_seed(0)
    shuffled = [tokens[torch.randperm(len(tokens), generator=generator)] for tokens in dense]

    def cached(config: CacherConfig) -> list[Tensor]:
        found = []
        with attach_cacher(tower, config) as cacher:
            for clip in clips:
                found.append(torch.cat([pooled_tokens(model, clip.frames[i : i + 1]) for i in range(len(clip.frames))]))
                cacher.reset()
        return found

    rows = {
        "dense": right_by_clip(model, clips, dense),
        "blind": right_by_clip(model, clips, dense[1:] + dense[:1]),
        "last frame": right_by_clip(model, clips, dense, last_only=True),
        "shuffled": right_by_clip(model, clips, shuffled),
    }
    for name, config in (("Cacher, plain", CacherConfig.paper()), ("Cacher, default", CacherConfig())):
        tokens = cached(config)
        rows[name] = right_by_clip(model, clips, tokens)
        pairs = zip(dense, tokens, strict=True)
        closeness = torch.cat([torch.cosine_similarity(a, b, dim=-1).mean(-1) for a, b in pairs])
        print(f"{name}: cosine to dense of a frame's tokens, worst {closeness.min():.3f}, mean {closeness.mean():.4f}")
    tasks = np.array([question.task for clip in clips for question in clip.questions])
    memory = np.array([not q.in_last_frame for clip in clips for q in clip.questions])
    print(f"{len(tasks)} questions, {memory.mean():.0%} need more than the last frame")
    print("".join(f"{head:>10}" for head in ("", *TASKS, "all", "memory")))
    for name, right in rows.items():
        flat = np.array([each for several in right for each in several])
        cells = [flat[tasks == task].mean() for task in TASKS] + [flat.mean(), flat[memory].mean()]
        print(f"{name[:15]:>15}" + "".join(f"{100 * cell:9.1f}" for cell in cells))


if __name__ == "__main__":
    main()
