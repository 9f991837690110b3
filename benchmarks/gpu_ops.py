"""One op on the GPU at small odd sizes, as `gpu_check` runs it: checked, or captured and replayed.

python -m benchmarks.gpu_ops {exercise,replay} OP
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

import stc_kernels  # noqa: F401  (registers the ops)
from benchmarks.cases import DTYPES, OPS, Case, Inputs, make_check, make_inputs

# Frames, tokens, channels, k: neither powers of two nor multiples of a block.
SIZES = ((1, 63, 72, 16), (3, 196, 130, 49))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; a wrong result raises."""
    parser = argparse.ArgumentParser(prog="gpu_ops", description=__doc__)
    parser.add_argument("what", choices=["exercise", "replay"])
    parser.add_argument("op", choices=OPS)
    options = parser.parse_args(arguments)
    with torch.no_grad():
        {"exercise": exercise, "replay": replay}[options.what](options.op)
    return 0


def exercise(op: str, device: str = "cuda") -> None:
    """Run an op at every size and dtype and hold it against its definition."""
    for case in _cases(op):
        inputs = make_inputs(case, device)
        make_check(case, inputs)(_op(op)(*inputs.ours))


def replay(op: str) -> None:
    """Capture an op in a CUDA graph; replay it on inputs that changed in place, three times."""
    for case in _cases(op):
        static = make_inputs(case, "cuda")
        warm_up = torch.cuda.Stream()
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):
            _op(op)(*static.ours)
        torch.cuda.current_stream().wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = _op(op)(*static.ours)
        for seed in (1, 2, 3):
            _overwrite(static, make_inputs(case, "cuda", seed))
            _poison(result)
            graph.replay()
            torch.cuda.synchronize()
            make_check(case, static)(result)


def _cases(op: str) -> Iterator[Case]:
    for dtype in DTYPES:
        for frames, tokens, channels, k in SIZES:
            yield Case(op, "small", frames, tokens, channels, k, dtype)


def _op(op: str) -> Any:
    return getattr(torch.ops.stc_kernels, op).default


def _overwrite(static: Inputs, other: Inputs) -> None:
    for target, source in zip(static.ours, other.ours, strict=True):
        if isinstance(target, Tensor):
            target.copy_(source)


def _poison(result: Tensor | tuple[Tensor, ...]) -> None:
    # What a replay does not write must not pass for a result.
    for tensor in (result,) if isinstance(result, Tensor) else result:
        tensor.fill_(torch.nan if tensor.is_floating_point() else -7)


if __name__ == "__main__":
    sys.exit(main())
