"""Each op against the plain ways to write it, eager and compiled, in turns in one process.

The ways are those of `benchmarks.eager`; the fastest of them is what ours is held against. Beside
them the limit: one read of the op's inputs (`x.sum()`) and one copy of its largest. A side whose
result is wrong is not timed: the test fails. Compilation is not counted.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any

import pytest
import torch

from benchmarks import eager
from benchmarks.cases import Case, Inputs, all_cases, make_check, make_inputs
from benchmarks.results import kept
from benchmarks.timers import PerCall, time_between
from stc_stream.evaluate.timing import Turns, Variant

OURS = "ours"
FEWEST_ROUNDS, MOST_ROUNDS = 5, 40


@pytest.mark.parametrize("case", all_cases(), ids=str)
@torch.no_grad()
def test_op(benchmark: Any, case: Case, clock: PerCall, device: str, seconds: float) -> None:
    inputs = make_inputs(case, device)
    sides, left_out = _checked_sides(case, inputs)
    turns = Turns(sides | _limits(inputs), clock.clock)
    rounds = turns.rounds_within(seconds, FEWEST_ROUNDS, MOST_ROUNDS)
    times = time_between(benchmark, clock, turns, OURS, sides[OURS], rounds)
    if not times:
        return
    read_bytes = sum(tensor.nbytes for tensor in inputs.read)
    rate = inputs.bytes / times[OURS].median
    benchmark.extra_info |= asdict(case) | {
        "kind": "op",
        "device": device,
        "bytes": inputs.bytes,
        "read_bytes": read_bytes,
        "copy_bytes": 2 * _largest(inputs).nbytes,
        "gigabytes_per_second": rate / 1e9,
        "percent_of_limit": 100 * rate / (read_bytes / times["read"].median),
        "sides": {name: kept(timing) for name, timing in times.items()},
        "left_out": left_out,
    }


def _checked_sides(case: Case, inputs: Inputs) -> tuple[dict[str, Variant], dict[str, str]]:
    """Return the sides that give the right result, and what could not be compiled here."""
    op = getattr(torch.ops.stc_kernels, case.op).default
    torch.compiler.reset()
    sides: dict[str, Variant] = {OURS: lambda: op(*inputs.ours)}
    for name, way in eager.ways(case.op, case.dtype).items():
        sides |= _pytorch(name, way, inputs)
    exact, rounded = make_check(case, inputs), make_check(case, inputs, exact=False)
    left_out: dict[str, str] = {}
    for name, side in list(sides.items()):
        try:
            result = side()
        except torch._dynamo.exc.BackendCompilerFailed as error:
            left_out[name] = str(error).partition("\n")[0]
            warnings.warn(f"{case}: not compiled: {left_out[name]}", stacklevel=2)
            del sides[name]
            continue
        check = exact if name == OURS or name.startswith("float32") else rounded
        check(result)
    return sides, left_out


def _pytorch(name: str, way: eager.Way, inputs: Inputs) -> dict[str, Variant]:
    compiled = torch.compile(way, dynamic=False, fullgraph=True)
    compiled_name = "compiled" if name == "eager" else f"{name}_compiled"
    return {name: lambda: way(*inputs.eager), compiled_name: lambda: compiled(*inputs.eager)}


def _limits(inputs: Inputs) -> dict[str, Variant]:
    source = _largest(inputs)
    target = torch.empty_like(source)
    return {
        "read": lambda: [tensor.sum() for tensor in inputs.read],
        "copy": lambda: target.copy_(source),
    }


def _largest(inputs: Inputs) -> torch.Tensor:
    return max(inputs.read, key=lambda tensor: tensor.nbytes)
