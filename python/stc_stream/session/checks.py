"""What a session is given, checked before anything is done with it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stc_stream.session.memory import Memory
from stc_stream.session.models import VideoModel
from stc_stream.session.processor import SessionProcessor


def check_frames(frames: Any) -> Tensor:
    """Return frames as a uint8 tensor [F, H, W, 3]."""
    if isinstance(frames, np.ndarray):
        if frames.dtype != np.uint8:
            raise TypeError(f"frames must be uint8, but is {frames.dtype}")
        # A reader's own buffer may be read-only, or flipped.
        frames = torch.from_numpy(np.array(frames))
    if not isinstance(frames, Tensor):
        raise TypeError(f"frames must be a tensor or an array, but is a {type(frames).__name__}")
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames must be uint8, but is {frames.dtype}")
    if frames.dim() != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(
            "frames must have shape [frames, height, width, 3], with at least one frame, but has "
            f"shape {list(frames.shape)}"
        )
    return frames


def check_timestamps(
    timestamps: Iterable[float] | None, frames: int, last: float | None
) -> list[float] | None:
    """Return the frames' times, in seconds; None: there are none.

    Args:
        last: the last time that was given before these.
    """
    if timestamps is None:
        return None
    try:
        times = None if isinstance(timestamps, str) else [float(time) for time in timestamps]
    except (TypeError, ValueError):
        times = None
    if times is None:
        raise TypeError(f"timestamps must be seconds, one number a frame, but is {timestamps!r}")
    if len(times) != frames:
        raise ValueError(f"timestamps must be one a frame, {frames}, but are {len(times)}")
    for before, time in zip([last, *times], times, strict=False):
        if not math.isfinite(time):
            raise ValueError(f"timestamps must be finite, but one is {time}")
        if before is not None and time < before:
            raise ValueError(f"timestamps must not go back, but {time} s follows {before} s")
    return times


def check_text(name: str, text: Any) -> str:
    """Return a text that has something in it."""
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str, but is a {type(text).__name__}")
    if not text.strip():
        raise ValueError(f"{name} must not be empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} must be whole characters, but has {text[error.start]!r} in place "
            f"{error.start}, a half of one"
        ) from None
    return text


def check_answers(answers: Iterable[str]) -> list[str]:
    """Return at least one text, each with something in it."""
    texts = [] if isinstance(answers, str) or not isinstance(answers, Iterable) else [*answers]
    if not texts:
        raise ValueError(f"answers must be a list of at least one text, but is {answers!r}")
    return [check_text("answers", text) for text in texts]


def check_count(name: str, value: Any) -> int:
    """Return an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, but is {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, but is {value}")
    return value


def check_processor(processor: SessionProcessor, model: VideoModel) -> None:
    """Refuse a processor of another model."""
    token, misfit = processor.video_token_id, model.misfit(processor.pixels)
    if token != model.video_token:
        raise ValueError(
            f"processor must be the model's: its {processor.video_token} is token {token}, but the "
            f"model's is {model.video_token}"
        )
    if misfit is not None:
        raise ValueError(f"processor must be the model's: {misfit}")
    known, rows = len(processor.tokenizer), model.embedding.num_embeddings
    if known > rows:
        raise ValueError(
            f"processor must be the model's: its tokenizer has {known} tokens, but the model {rows}"
        )


def check_positions(positions: Any, model: VideoModel) -> None:
    """Refuse positions that are not known, or that the model's attention would misread."""
    if positions not in ("kept", "contiguous"):
        raise ValueError(f"positions must be 'kept' or 'contiguous', but is {positions!r}")
    attention = str(getattr(model.llm.config, "_attn_implementation", ""))
    if positions == "kept" and "flash" in attention:
        raise ValueError(
            f"positions must be 'contiguous' with attention {attention!r}, which reads gaps "
            "between positions as several sequences: or load the model with "
            "attn_implementation='sdpa'"
        )


def check_memory(memory: Any) -> Memory:
    """Return a memory policy."""
    if isinstance(memory, type) or not callable(getattr(memory, "open", None)):
        raise TypeError(
            f"memory must be a memory policy, as FullMemory(), or None, but is {memory!r}"
        )
    policy: Memory = memory
    return policy


def check_kept(tokens: Any, index: Any, frame: Tensor) -> None:
    """Refuse what a pruner of the user's own can't have kept of a frame, [T, D]."""
    if not (isinstance(tokens, Tensor) and tokens.dim() == 2 and tokens.shape[1] == frame.shape[1]):
        raise ValueError(
            f"pruner must return tokens [k, {frame.shape[1]}] of each frame, but returned "
            f"{_form(tokens)}"
        )
    if not (
        isinstance(index, Tensor) and index.dtype == torch.int64 and index.shape == tokens.shape[:1]
    ):
        raise ValueError(
            f"pruner must return index int64 [{len(tokens)}] of each frame, as its tokens, but "
            f"returned {_form(index)}"
        )
    if bool(((index < 0) | (index >= len(frame))).any()):
        raise ValueError(
            f"pruner must return index in 0..{len(frame) - 1}, but returned {index.tolist()}"
        )


def check_tokens(tokens: Tensor, first: int, frames_per_patch: int) -> None:
    """Refuse tokens of frames that are not finite, which would spoil every later answer.

    Args:
        tokens: [P, T, D].
        first: the number of the first of the frames in its stream.
        frames_per_patch: frames that make one of the P.
    """
    broken = ~tokens.isfinite().flatten(1).all(dim=1)
    if bool(broken.any()):
        number = first + frames_per_patch * int(broken.nonzero()[0, 0])
        raise ValueError(
            f"frames must give finite tokens, but frame {number} of the stream does not: nothing "
            "of this chunk was taken"
        )


def _form(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{value.dtype} {list(value.shape)}"
