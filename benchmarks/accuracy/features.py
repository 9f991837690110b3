"""Between the stages: what the trained tower makes of the training clips, computed once."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from benchmarks.accuracy.loop import OutOfTime, StateError, write_whole
from benchmarks.accuracy.model import TOKENS, WIDTH, tower_weights
from benchmarks.accuracy.tower import hidden_states, pixels, pooled
from stc_stream.evaluate.scenes import Script, make_clip, make_script

LONG = 16
"""Frames of a training clip; a step of the LLM sees a run of them, forwards or backwards."""
_SAVE_EVERY = 50


@dataclass(frozen=True, eq=False)
class Features:
    """What the LLM sees of the training clips.

    Attributes:
        tokens: float16 [clips, LONG, TOKENS, WIDTH].
        scripts: what happens in each clip.
    """

    tokens: NDArray[np.float16]
    scripts: list[Script]


def make_features(
    model: LlavaOnevisionForConditionalGeneration,
    clips: int,
    file: Path,
    stop_at: float = math.inf,
) -> Features:
    """Encode training clips, or read what this tower has encoded before.

    Args:
        model: with the trained tower.
        clips: how many, numbers 0 to `clips` - 1 of the training split.
        file: of the tokens; which tower they are of and how many are done is kept beside it.
        stop_at: time of `time.monotonic()` to stop at.

    Raises:
        OutOfTime: there are clips left.
        StateError: the file is damaged.
    """
    progress = file.with_suffix(".json")
    shape = (clips, LONG, TOKENS, WIDTH)
    tower = _fingerprint(model)
    done = _clips_done(progress, tower)
    try:
        tokens = np.lib.format.open_memmap(
            file, mode="r+" if done else "w+", dtype=np.float16, shape=shape
        )
        if tokens.shape != shape:
            raise ValueError(f"it holds {tokens.shape[0]} clips, not {clips}")
    except (OSError, ValueError, EOFError) as error:
        raise StateError(
            f"{file} can't be used; delete {progress} to begin anew ({error})"
        ) from error
    numbers = range(done, clips)
    for number in track(numbers, "features", disable=not numbers):
        tokens[number] = pooled_tokens(model, make_clip("train", number, LONG).frames).numpy()
        over = time.monotonic() >= stop_at
        if over or (number + 1) % _SAVE_EVERY == 0 or number + 1 == clips:
            tokens.flush()
            state = json.dumps({"tower": tower, "clips": number + 1})
            write_whole(progress, lambda partial, state=state: partial.write_text(state))
        if over and number + 1 < clips:
            raise OutOfTime(f"features: {number + 1} of {clips} clips are done; run again to go on")
    return Features(tokens, [make_script("train", number, LONG) for number in range(clips)])


@torch.no_grad()
def pooled_tokens(
    model: LlavaOnevisionForConditionalGeneration, frames: NDArray[np.uint8]
) -> Tensor:
    """Return the tokens that the LLM sees of a clip's frames, float32 [F, TOKENS, WIDTH]."""
    return pooled(model, hidden_states(model, pixels(frames)))


def _fingerprint(model: LlavaOnevisionForConditionalGeneration) -> str:
    digest = hashlib.sha256()
    for weight in tower_weights(model):
        digest.update(weight.detach().numpy().tobytes())
    return digest.hexdigest()


def _clips_done(progress: Path, tower: str) -> int:
    """Return how many clips this very tower has encoded."""
    if not progress.exists():
        return 0
    try:
        saved = json.loads(progress.read_text())
        return int(saved["clips"]) if saved["tower"] == tower else 0
    except (ValueError, LookupError, TypeError) as error:
        raise StateError(f"{progress} can't be used; delete it to begin anew ({error})") from error
