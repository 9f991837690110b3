"""Compile the GPU kernels before they are needed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from stc_kernels._registry import SCHEMAS, implementation


def warmup(
    tokens: int,
    channels: int,
    k: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cuda",
    ops: tuple[str, ...] | None = None,
) -> None:
    """Compile what the ops need for frames of one shape, so that no later call stalls.

    Runs each op, with and without its optional arguments and with each metric and strategy, on one
    frame of zeros; the number of frames of later calls doesn't matter. Call it before capturing a
    CUDA graph too. On a CPU there is nothing to compile.

    Args:
        tokens: T, tokens a frame.
        channels: C or D, channels a token.
        k: tokens chosen a frame, 1..T.
        dtype: float32, float16 or bfloat16.
        device: the GPU.
        ops: their names; None: all.

    Raises:
        ValueError: an unknown op, or k outside 1..T.
    """
    names = tuple(SCHEMAS) if ops is None else ops
    for name in names:
        implementation(name)
    if not 1 <= k <= tokens:
        raise ValueError(f"k must be in 1..{tokens}, but is {k}")
    if torch.device(device).type == "cpu":
        return
    with torch.no_grad():
        for name in names:
            for arguments in calls(name, 1, tokens, channels, k, dtype, device):
                getattr(torch.ops.stc_kernels, name)(*arguments)
    torch.cuda.synchronize(device)


def calls(
    op: str,
    frames: int,
    tokens: int,
    channels: int,
    k: int,
    dtype: torch.dtype,
    device: str | torch.device,
) -> Iterator[tuple[Any, ...]]:
    """Yield arguments of an op that need each of its kernels once, on zeros."""

    def zeros(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    x, chosen = zeros(frames, tokens, channels), zeros(frames, k, channels)
    index = zeros(frames, k, dtype=torch.int64)
    slot = zeros(frames, tokens, dtype=torch.int32)
    held = zeros(frames, dtype=torch.int64)
    if op in ("patch_similarity", "select_dynamic"):
        count = (k,) if op == "select_dynamic" else ()
        for at, metric in itertools.product((None, held), ("cosine", "dot", "l1", "l2")):
            yield (x, x, *count, at, metric)
    elif op == "gather_tokens":
        yield x, index
    elif op == "merge_tokens":
        for at, residual in itertools.product((None, held), (None, x)):
            yield chosen, x, slot, at, residual
    elif op == "merge_tokens_norm":
        weight = zeros(channels)
        for bias, at, residual in itertools.product((None, weight), (None, held), (None, x)):
            yield chosen, x, slot, weight, bias, at, residual
    elif op == "layer_norm_gather":
        weight = zeros(channels)
        for bias, added in itertools.product((None, weight), (None, chosen)):
            yield x, index, weight, bias, added
    elif op == "quiet_channels":
        yield x, max(1, channels // 2)
    elif op == "topk_gather":
        for largest in (True, False):
            yield x, zeros(frames, tokens, dtype=torch.float32), k, largest
    else:
        some = torch.arange(max(1, channels // 2), device=device)
        count = (k,) if op == "prune_tokens" else ()
        for strategy, picked in itertools.product(("dual_anchor", "gaussian"), (None, some)):
            width = channels if picked is None else picked.shape[0]
            # None, the running mean of a TokenPruner, and a frame's own in the tokens' dtype.
            pasts = (None, zeros(width, dtype=torch.float32), zeros(frames, width))
            for past in pasts:
                yield (x, *count, past, strategy, 0.5, picked)
