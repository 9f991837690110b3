"""Each op against the same thing in plain PyTorch, eager and compiled, in turns in one process.

Where an op takes a cosine there is a lean version too, eager and compiled (`benchmarks.eager`).
Beside them the limit: one read of the op's inputs (`x.sum()`) and one copy of its largest. A side
whose result is wrong is not timed: the test fails. Compilation is not counted.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch

from benchmarks import eager
from benchmarks.cases import Case, Inputs, all_cases, make_check, make_inputs
from benchmarks.timers import PerCall, Side, Times, Turns

OURS = "ours"
FEWEST_ROUNDS, MOST_ROUNDS = 5, 40


@pytest.mark.parametrize("case", all_cases(), ids=str)
@torch.no_grad()
def test_op(benchmark: Any, case: Case, clock: PerCall, device: str, seconds: float) -> None:
    inputs = make_inputs(case, device)
    sides, left_out = _checked_sides(case, inputs)
    turns = Turns(sides | _limits(inputs), clock.clock)
    rounds = turns.rounds(seconds, FEWEST_ROUNDS, MOST_ROUNDS)
    ours = sides[OURS]
    clock.count = turns.calls[OURS]

    def run() -> None:
        for _ in range(clock.count):
            ours()

    def let_the_others_go_first() -> None:
        turns.lap([name for name in turns.calls if name != OURS])

    benchmark.pedantic(run, setup=let_the_others_go_first, rounds=rounds)
    if benchmark.stats is None:
        return
    times = turns.times(rounds) | {OURS: Times.of(benchmark.stats.stats.data, clock.count)}
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
        "sides": {name: asdict(side) for name, side in times.items()},
        "left_out": left_out,
    }


def _checked_sides(case: Case, inputs: Inputs) -> tuple[dict[str, Side], dict[str, str]]:
    """Return the sides that give the right result, and what could not be compiled here."""
    op = getattr(torch.ops.stc_kernels, case.op).default
    torch.compiler.reset()
    sides: dict[str, Side] = {OURS: lambda: op(*inputs.ours)}
    sides |= _pytorch("eager", "compiled", getattr(eager, case.op), inputs)
    if case.op in eager.LEAN:
        sides |= _pytorch("lean", "lean_compiled", eager.LEAN[case.op], inputs)
    check, left_out = make_check(case, inputs), {}
    for name, side in list(sides.items()):
        try:
            result = side()
        except torch._dynamo.exc.BackendCompilerFailed as error:
            left_out[name] = str(error).partition("\n")[0]
            warnings.warn(f"{case}: not compiled: {left_out[name]}", stacklevel=2)
            del sides[name]
            continue
        check(result)
    return sides, left_out


def _pytorch(
    name: str, compiled_name: str, composition: Callable[..., object], inputs: Inputs
) -> dict[str, Side]:
    compiled = torch.compile(composition, dynamic=False, fullgraph=True)
    return {
        name: lambda: composition(*inputs.eager),
        compiled_name: lambda: compiled(*inputs.eager),
    }


def _limits(inputs: Inputs) -> dict[str, Side]:
    source = _largest(inputs)
    target = torch.empty_like(source)
    return {
        "read": lambda: [tensor.sum() for tensor in inputs.read],
        "copy": lambda: target.copy_(source),
    }


def _largest(inputs: Inputs) -> torch.Tensor:
    return max(inputs.read, key=lambda tensor: tensor.nbytes)
