"""What a compiler sees of the ops on GPU tensors: the launches, for any number of frames.

No GPU is needed to trace: tensors are fake, and Triton is told which GPU to think of.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed here: pip install triton")

from ops.test_registration import OPS, arguments
from torch._functorch.aot_autograd import aot_export_module
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

FRAMES = 7
LAUNCHES = {"quiet_channels": 2, "anchor_scores": 2, "prune_tokens": 2}  # the gaussian strategy


class NoDriver:
    """A GPU to compile for, not to run on."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def _hopper(monkeypatch):
    monkeypatch.setattr(type(driver), "active", NoDriver())


def traced(op: str, device: str, *, masked: bool = False) -> tuple[torch.fx.GraphModule, ShapeEnv]:
    """Return an op's graph as a compiler gets it, of fake tensors with a symbolic frame count.

    With `masked` a mask chooses the frames, so that their number is not known.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(allow_dynamic_output_shape_ops=True))
    example = arguments(op, FRAMES)
    real = [a for a in example if isinstance(a, torch.Tensor)]

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        kinds = [DimDynamic.DYNAMIC if n == FRAMES else DimDynamic.STATIC for n in tensor.shape]
        context = StatelessSymbolicContext(dynamic_sizes=kinds)
        shape = mode.from_tensor(tensor, symbolic_context=context).shape
        return torch.empty(shape, dtype=tensor.dtype, device=device)

    class Module(torch.nn.Module):
        def forward(self, mask: torch.Tensor, *tensors: torch.Tensor) -> Any:
            if masked:
                frames = mask.nonzero().shape[0]
                pairs = zip(tensors, real, strict=True)
                tensors = tuple(
                    t.new_empty((frames, *a.shape[1:])) if len(a) == FRAMES else t for t, a in pairs
                )
            given = iter(tensors)
            filled = [next(given) if isinstance(a, torch.Tensor) else a for a in example]
            result = getattr(torch.ops.stc_kernels, op)(*filled)
            return result if isinstance(result, tuple) else (result,)

    with mode:
        mask = mode.from_tensor(torch.ones(FRAMES, dtype=torch.bool))
        tensors = [mask, *map(fake, real)]
        graph, _ = aot_export_module(Module(), tensors, trace_joint=False)
    return graph, mode.shape_env


def called(graph: torch.fx.GraphModule, word: str) -> list[torch.fx.Node]:
    return [n for n in graph.graph.nodes if n.op == "call_function" and word in str(n.target)]


@pytest.mark.usefixtures("_hopper")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_a_compiler_sees_the_launches(op, masked):
    graph, shapes = traced(op, "cuda", masked=masked)
    assert not called(graph, "stc_kernels"), "the op was not opened"
    launches = called(graph, "triton_kernel_wrapper")
    assert len(launches) == LAUNCHES.get(op, 1)
    assert not shapes.guards, "the number of frames was asked for"
    for launch in launches:
        # What a kernel is known to write: results and scratch, no input.
        written = set(launch.kwargs["tensors_to_clone"])
        inputs = {
            name
            for name, value in launch.kwargs["kwargs"].items()
            if isinstance(value, torch.fx.Node) and value.op == "placeholder"
        }
        assert written and not written & inputs


@pytest.mark.parametrize("op", OPS)
def test_on_a_cpu_the_op_stays(op):
    graph, _ = traced(op, "cpu")
    assert len(called(graph, f"stc_kernels.{op}")) == 1
    assert not called(graph, "triton")


def test_what_varies_is_never_specialised_on():
    from stc_kernels import ahead_of_time

    for launch in ahead_of_time.launches(torch.float32).values():
        for parameter in launch.kernel.params:
            if parameter.name in ("rows", "references", "chosen", "k", "keep"):
                assert parameter.do_not_specialize
            assert parameter.name != "frames"
