"""What tests and benchmarks share: tolerances, sample inputs and the definitions by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def naive(op: str) -> Callable[..., Any]:
    """Return the plain PyTorch definition of an op."""
    function: Callable[..., Any] = getattr(import_module(f"stc_kernels.ops.{op}.naive"), op)
    return function


def score_tolerance(channels: int) -> dict[str, float]:
    """Return rtol and atol for float32 sums of `channels` products, in any order."""
    # The inputs are the same to the bit whatever their dtype, so only the order of a sum differs.
    return {"rtol": 2e-6 * max(1.0, channels**0.5 / 8), "atol": 2e-6 * max(1.0, channels**0.5 / 8)}


def random_tokens(
    frames: int,
    tokens: int,
    channels: int,
    dtype: torch.dtype = torch.float32,
    *,
    generator: torch.Generator | None = None,
    layout: str = "contiguous",
) -> Tensor:
    """Return normal random tokens [frames, tokens, channels] in one of several memory layouts.

    Args:
        frames: F.
        tokens: T.
        channels: C.
        dtype: float32, float16 or bfloat16.
        generator: source of randomness.
        layout: ``contiguous``; ``sliced`` (a window of a larger tensor), ``transposed`` (channels
            are not next to each other), ``reversed_frames`` (frames apart and in other order of
            memory), ``expanded`` (stride 0 over frames).

    Raises:
        ValueError: an unknown layout.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    if layout == "contiguous":
        return normal(frames, tokens, channels)
    if layout == "sliced":
        return normal(frames + 1, tokens + 2, channels + 3)[1:, 1:-1, 2:-1]
    if layout == "transposed":
        return normal(frames, channels, tokens).transpose(1, 2)
    if layout == "reversed_frames":
        return normal(tokens, 2 * frames, channels)[:, ::2].transpose(0, 1)
    if layout == "expanded":
        return normal(1, tokens, channels).expand(frames, -1, -1)
    raise ValueError(f"unknown layout '{layout}'")


def integer_tokens(
    frames: int,
    tokens: int,
    channels: int,
    dtype: torch.dtype = torch.float32,
    *,
    generator: torch.Generator | None = None,
    largest: int = 2,
) -> Tensor:
    """Return random tokens of small integers: every sum is exact, and equal scores are many."""
    shape = (frames, tokens, channels)
    return torch.randint(-largest, largest + 1, shape, generator=generator).to(dtype)
