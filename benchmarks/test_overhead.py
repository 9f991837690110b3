"""What a call costs beside its arithmetic: each op on two tokens of eight channels.

Held against an op of ours that does nothing but return a short string (`_instruction_set`): the
same dispatcher, the same boxing, no tensor in or out. So the difference also holds the checks of
the arguments and the making of the results; `torch.empty` is timed beside them for scale. On a GPU
it is the CPU's time until the call returns, launches included.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch

import stc_kernels
from benchmarks.cases import OPS, Case, make_check, make_inputs
from benchmarks.results import kept
from benchmarks.timers import PerCall, time_between
from stc_stream.evaluate.timing import Turns, Variant, WallClock

CLOCK = PerCall(WallClock())


@pytest.mark.benchmark(timer=CLOCK, group="overhead")
@pytest.mark.parametrize("op", OPS)
@torch.no_grad()
def test_overhead(benchmark: Any, op: str, device: str, seconds: float) -> None:
    case = Case(op, "tiny", frames=1, tokens=2, channels=8, k=1, dtype="float32")
    inputs = make_inputs(case, device)
    raw, public = getattr(torch.ops.stc_kernels, op).default, getattr(stc_kernels, op)
    empty = torch.ops.stc_kernels._instruction_set.default
    make_check(case, inputs)(raw(*inputs.ours))
    sides: dict[str, Variant] = {
        "op": lambda: raw(*inputs.ours),
        "function": lambda: public(*inputs.ours),
        "empty": lambda: empty(),
        "allocate": lambda: torch.empty(8, device=device),
    }
    turns = Turns(sides, CLOCK.clock)
    rounds = turns.rounds_within(seconds / 4, 20, 60)
    times = time_between(benchmark, CLOCK, turns, "op", sides["op"], rounds)
    if not times:
        return
    benchmark.extra_info |= asdict(case) | {
        "kind": "overhead",
        "device": device,
        "overhead_us": 1e6 * (times["op"].median - times["empty"].median),
        "sides": {name: kept(timing) for name, timing in times.items()},
    }
