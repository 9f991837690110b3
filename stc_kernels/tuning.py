"""Measure the GPU kernels' block sizes: ``python -m stc_kernels.tuning``.

For whoever has a GPU model that ``configs/`` doesn't know: it times a few sizes for every op and
writes ``configs/<gpu>.json``. Nothing is timed at a user's call.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from typing import Any

import torch

from stc_kernels import _blocks
from stc_kernels._registry import implementation
from stc_kernels._warmup import calls

CACHER_SHAPES = ((729, 1152, 182), (576, 768, 144), (577, 1024, 144), (1024, 1280, 256))
PRUNER_SHAPES = ((196, 896, 64), (196, 1536, 64), (196, 3584, 64))
_CACHER_OPS = (
    "patch_similarity",
    "select_dynamic",
    "gather_tokens",
    "merge_tokens",
    "merge_tokens_norm",
    "layer_norm_gather",
)
_PRUNER_OPS = ("quiet_channels", "anchor_scores", "topk_gather", "prune_tokens")
# Frames of a call that is timed: one as it comes, and a batch.
_FRAMES = (1, 16)
_ROUNDS = 20


def candidates(op: str, tokens: int, channels: int, itemsize: int) -> list[_blocks.Sizes]:
    """Return the block sizes worth timing for an op, the rule of thumb first."""
    rule = _blocks.rule_of_thumb(op, tokens, channels, itemsize)
    whole_rows = op in ("merge_tokens_norm", "layer_norm_gather")
    found = [rule]
    for rows, width, warps in itertools.product((0.5, 1, 2), (0.5, 1, 2), (0.5, 1, 2)):
        if whole_rows and width != 1:
            continue
        sizes = {
            "BLOCK_T": max(1, int(rule["BLOCK_T"] * rows)),
            "BLOCK_C": max(1, int(rule["BLOCK_C"] * width)),
            "num_warps": min(16, max(1, int(rule["num_warps"] * warps))),
        }
        held = sizes["BLOCK_T"] * sizes["BLOCK_C"] // (32 * sizes["num_warps"])
        # More in registers spills, fewer leave lanes without work.
        if sizes not in found and 4 <= held <= 64:
            found.append(sizes)
    return found


def tune(shapes: tuple[tuple[int, int, int], ...], ops: tuple[str, ...]) -> list[dict[str, Any]]:
    """Time the candidates of each op at shapes (T, C, k) and return the best as entries."""
    entries = []
    for (tokens, channels, k), dtype, op in itertools.product(
        shapes, (torch.float32, torch.bfloat16), ops
    ):
        if op == "prune_tokens":
            continue  # made of anchor_scores and gather_tokens, with their sizes
        key = (op, tokens, channels, torch.empty(0, dtype=dtype).element_size())
        measured = _blocks.measured(torch.cuda.get_device_name())
        times = []
        for sizes in candidates(*key):
            measured[key] = sizes
            times.append((sum(_time(op, f, tokens, channels, k, dtype) for f in _FRAMES), sizes))
        measured[key] = min(times, key=lambda pair: pair[0])[1]
        entries.append(
            dict(zip(("op", "tokens", "channels", "itemsize"), key, strict=True))
            | {"sizes": measured[key]}
        )
        print(f"{key}: {measured[key]}")
    return entries


def _time(op: str, frames: int, tokens: int, channels: int, k: int, dtype: torch.dtype) -> float:
    """Return milliseconds of a call relative to those of reading its tokens once, in a graph."""
    arguments = next(calls(op, frames, tokens, channels, k, dtype, "cuda"))
    # Random, so that choices are spread; frames a plenty, so that no round finds them in the cache.
    arguments[0].normal_()
    function = getattr(torch.ops.stc_kernels, op)
    return _median(lambda: function(*arguments)) / _median(lambda: arguments[0].sum())


def _median(run: Callable[[], Any]) -> float:
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    flush = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda")
    times: list[float] = []
    for _ in range(_ROUNDS):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)))
    return sorted(times)[_ROUNDS // 2]


def main() -> int:
    """Measure this machine's GPU and write its file; 2 where there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    if implementation("prune_tokens", "cuda") != "Triton" or not torch.cuda.is_available():
        print("tuning needs a GPU and triton: run it where `stc info` shows both")
        return 2
    entries = tune(CACHER_SHAPES, _CACHER_OPS) + tune(PRUNER_SHAPES, _PRUNER_OPS)
    name = torch.cuda.get_device_name()
    path = _blocks.config_path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps({"gpu": name, "torch": torch.__version__, "entries": entries}, indent=1) + "\n"
    )
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
