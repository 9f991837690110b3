"""What a session says of the frames it was fed, and of what it holds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Fed:
    """What became of a chunk of frames.

    Attributes:
        frames: frames in it.
        tokens: tokens that the projector (and pooling) made. Where several frames make a temporal
            patch, of those that are whole now: a frame that waits has none yet.
        kept: tokens that the pruner kept of these.
        index: the kept tokens' places in each frame (temporal patch), int64 [k], one tensor each.
        seconds: of "preprocess", "tower" (with projector and pooling), "prune" and "prefill".
    """

    frames: int
    tokens: int
    kept: int
    index: tuple[Tensor, ...]
    seconds: dict[str, float]


@dataclass(frozen=True)
class SessionStats:
    """What a session has seen and what it holds.

    Attributes:
        frames: frames fed.
        tokens_seen: tokens that the projector made of them.
        tokens_held: tokens in the LLM's memory, those of the prompt before the video included.
        bytes_device, bytes_host: of what is held, keys and values or frames' tokens, on the model's
            device and in host memory.
        bytes_reserved: allocated for that, used or not.
        frames_forgotten: frames fed of which the memory holds nothing any more.
        frames_waiting: frames of these that wait for more to make a temporal patch.
    """

    frames: int
    tokens_seen: int
    tokens_held: int
    bytes_device: int
    bytes_host: int
    bytes_reserved: int
    frames_forgotten: int = 0
    frames_waiting: int = 0
