"""What is left to compile, and to zero, while a CUDA graph is captured: nothing.

No GPU is needed: tensors are on the CPU, at real addresses, and Triton is told which GPU to think
of. It chooses what to compile by what it is called with, and compiles for show.
"""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed here: pip install triton")

from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

from stc_kernels import _counters, _launching
from stc_kernels._registry import SCHEMAS
from stc_kernels._warmup import calls

LAYERS = 27
TOKENS, CHANNELS, KEPT = 37, 48, 9


class Queue:
    """A CUDA stream: it captures or it doesn't, and may be waited for."""

    cuda_stream = 7

    def __init__(self):
        self.capturing = False
        self.waits = 0

    def synchronize(self):
        self.waits += 1


class Driver:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@pytest.fixture
def queue(monkeypatch):
    """Let the launchers take CPU tensors for a GPU's, on a stream that the test may capture."""
    queue = Queue()
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: queue.capturing)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: queue)
    for name in ("_unused", "_by_stream"):
        monkeypatch.setattr(_counters, name, {})
    monkeypatch.setattr(_counters, "_kept", [])
    return queue


@pytest.fixture
def compiled(monkeypatch):
    """Return the names of the kernels that Triton has compiled, one after the other."""
    names = []

    def compile_for_show(kernel, key, *rest):
        names.append(kernel.__name__)
        kernel.device_caches[0][0][key] = SimpleNamespace()

    class Warm:
        def __init__(self, kernel):
            self.kernel = kernel
            # Other tests may have compiled it for another target.
            if kernel not in seen:
                monkeypatch.setattr(
                    kernel, "device_caches", type(kernel.device_caches)(kernel.create_binder)
                )
                seen.add(kernel)

        def __getitem__(self, grid):
            options = _launching.compiler_options(nvidia=True)
            return lambda *args, **meta: self.kernel.run(
                *args, grid=grid, warmup=True, **meta, **options
            )

    seen = set()
    monkeypatch.setattr(type(driver), "active", Driver())
    monkeypatch.setattr(jit.JITFunction, "_do_compile", compile_for_show)
    monkeypatch.setattr(_launching, "wrap", Warm)
    return names


def launch(op, frames):
    run = getattr(import_module(f"stc_kernels.ops.{op}.launch"), op)
    for arguments in calls(op, frames, TOKENS, CHANNELS, KEPT, torch.bfloat16, "cpu"):
        run(*arguments)


@pytest.mark.parametrize("op", SCHEMAS)
def test_a_capture_compiles_nothing(op, queue, compiled):
    launch(op, frames=1)
    assert compiled, "nothing is compiled at all"
    launch(op, frames=5)
    compiled.clear()
    queue.capturing = True
    for _ in range(LAYERS):
        launch(op, frames=5)
    assert not compiled


def test_captured_counters_are_zero_aligned_and_nobody_elses(queue):
    like = torch.empty(1)
    _counters.zeroed_counters(3, like)
    queue.capturing = True
    cuts = [_counters.zeroed_counters(count, like) for count in (1, 3, 32, 33, 5) for _ in range(9)]
    assert all(cut.data_ptr() % 16 == 0 and not cut.any() for cut in cuts)
    for number, cut in enumerate(cuts):
        cut.fill_(number + 1)
    assert all((cut == number + 1).all() for number, cut in enumerate(cuts))


def test_a_block_of_counters_is_followed_by_another(queue, monkeypatch):
    like, zeros = torch.empty(1), torch.zeros
    made = []
    monkeypatch.setattr(
        torch, "zeros", lambda *a, **k: made.append(queue.capturing) or zeros(*a, **k)
    )
    cuts = []
    for _ in range(100):
        queue.capturing = False
        _counters.zeroed_counters(64, like)
        queue.capturing = True
        # A graph of 27 layers and 64 frames, whose batches mix two sorts of rows.
        cuts += [_counters.zeroed_counters(64, like) for _ in range(2 * LAYERS)]
    assert True not in made, "a graph zeroes counters"
    assert len({cut.data_ptr() for cut in cuts}) == len(cuts)
    assert len(_counters._kept) > 1
    # One each for a whole block, whatever the number of calls.
    assert queue.waits == len(_counters._kept)
