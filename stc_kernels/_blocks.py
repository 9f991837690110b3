"""Block sizes of the Triton kernels: measured ones from ``configs/``, else a rule of thumb.

A file holds what ``python -m stc_kernels.tuning`` measured on one GPU model. The number of frames
is in no key: a stream's batch may grow and shrink without a kernel being compiled anew.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from stc_kernels._launching import next_power_of_2

_CONFIGS = Path(__file__).resolve().parent / "configs"
_TILE = 4096  # bytes of an input that a program of four warps holds at once
_WIDEST = 1024  # bytes of a row

Sizes = dict[str, int]


def block_sizes(op: str, tokens: Tensor) -> Sizes:
    """Return BLOCK_T, BLOCK_C and num_warps for a kernel over `tokens`, [F, T, C].

    Args:
        op: name of the op whose sizes were measured.
        tokens: what it reads; its frames are not looked at.
    """
    length, channels = int(tokens.shape[1]), int(tokens.shape[2])
    key = (op, length, channels, tokens.element_size())
    sizes = measured(_gpu_name(tokens.device)).get(key) if tokens.is_cuda else None
    return dict(sizes if sizes is not None else rule_of_thumb(*key))


@cache
def rule_of_thumb(op: str, tokens: int, channels: int, itemsize: int) -> Sizes:
    """Return sizes for a GPU that nothing was measured on."""
    tile = _TILE // itemsize
    if op in ("merge_tokens_norm", "layer_norm_gather"):
        # A whole row at once: its statistics come before its result.
        width = next_power_of_2(channels)
        warps = min(16, max(4, width // 512))
        return {"BLOCK_T": max(1, 1024 // width), "BLOCK_C": width, "num_warps": warps}
    if op == "anchor_scores":
        # Few channels of all tokens: the second pass over them finds them in the cache.
        width = min(64 if tokens <= 1024 else 128, next_power_of_2(channels))
        rows = min(next_power_of_2(tokens), 2048 // width)
        return {"BLOCK_T": rows, "BLOCK_C": width, "num_warps": 4}
    if op == "quiet_channels":
        width = min(64, next_power_of_2(channels))
        return {"BLOCK_T": 16, "BLOCK_C": width, "num_warps": 4}
    width = _row_width(channels, itemsize)
    rows = min(next_power_of_2(tokens), max(1, tile // width))
    if op == "topk_gather":
        # Each program repeats the choice, so a few more rows each.
        rows = min(next_power_of_2(tokens), 16)
        width = min(width, max(1, tile // rows))
    return {"BLOCK_T": rows, "BLOCK_C": width, "num_warps": 4}


@cache
def measured(gpu: str) -> dict[tuple[str, int, int, int], Sizes]:
    """Return the sizes measured on a GPU model, by op, T, C and bytes an element."""
    path = config_path(gpu)
    if not path.exists():
        return {}
    entries = json.loads(path.read_text())["entries"]
    return {
        (e["op"], e["tokens"], e["channels"], e["itemsize"]): {
            k: int(v) for k, v in e["sizes"].items()
        }
        for e in entries
    }


def config_path(gpu: str) -> Path:
    """Return where the sizes of a GPU model are kept: ``configs/nvidia-h200.json``."""
    return _CONFIGS / (re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json")


def _row_width(channels: int, itemsize: int) -> int:
    # The widest power of two that leaves at most a quarter of the lanes without work.
    width = min(_WIDEST // itemsize, next_power_of_2(channels))
    while width > 64 and 3 * -(-channels // width) * width > 4 * channels:
        width //= 2
    return width


@cache
def _gpu_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if torch.cuda.is_available() else ""
