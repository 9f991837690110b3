"""Counters at zero for kernels whose last block finishes a frame, without a launch to zero them.

Such a kernel leaves its counters at zero again. A counter is therefore fit for the next kernel
that runs *after* this one, and who runs after whom decides who may share:

- launches on one stream run one after the other: they share, a buffer a stream;
- a launch captured in a CUDA graph runs whenever the graph is replayed, on any stream, beside
  other graphs: its counters are its own for good, cut from a block that was zeroed beforehand;
- a traced launch (`torch.compile`, AOTInductor) gets a tensor of zeros in its graph, as a compiled
  program can't hold a tensor of ours.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

_BLOCK = 1 << 16  # counters of a block, 256 KiB
_CUT = 32  # so that each cut begins where a tensor would: Triton compiles anew for other addresses

_lock = threading.Lock()
_unused: dict[torch.device, Tensor] = {}
_by_stream: dict[tuple[torch.device, int], Tensor] = {}
# Graphs hold addresses alone, so no block is ever given back.
_kept: list[Tensor] = []


def zeroed_counters(count: int, like: Tensor) -> Tensor:
    """Return at least `count` int32 counters at zero on the device of `like`.

    The kernel they are given to must be launched next on the current stream, and must leave them
    at zero.
    """
    # A tracer's tensors are of another type; on the CPU (Triton's interpreter) zeroing is free.
    if type(like) not in (Tensor, torch.nn.Parameter) or not like.is_cuda:
        return torch.zeros(count, dtype=torch.int32, device=like.device)
    return _on_gpu(count, like.device)


def _on_gpu(count: int, device: torch.device) -> Tensor:
    if torch.cuda.is_current_stream_capturing():
        return _captured(count, device)
    _keep_some_for_graphs(device)
    stream = torch.cuda.current_stream(device).cuda_stream
    counters = _by_stream.get((device, stream))
    if counters is None or counters.numel() < count:
        counters = torch.zeros(max(4096, 2 * count), dtype=torch.int32, device=device)
        _by_stream[device, stream] = counters
    return counters


def _captured(count: int, device: torch.device) -> Tensor:
    size = -(-count // _CUT) * _CUT
    with _lock:
        unused = _unused.get(device)
        if unused is not None and unused.numel() >= size:
            _unused[device] = unused[size:]
            return unused[:size]
    # Nothing can be zeroed beforehand any more: the graph does it, in a node of its own.
    return torch.zeros(size, dtype=torch.int32, device=device)


def _keep_some_for_graphs(device: torch.device) -> None:
    """Have half a block at hand, which is 18 graphs of 27 layers and 64 frames."""
    with _lock:
        unused = _unused.get(device)
        if unused is not None and unused.numel() >= _BLOCK // 2:
            return
        block = torch.zeros(_BLOCK, dtype=torch.int32, device=device)
        # Zero for every stream from here on: a wait in dozens of captures, never one a call. Not
        # for the whole device, which can't be waited for while another thread captures.
        torch.cuda.current_stream(device).synchronize()
        _kept.append(block)
        _unused[device] = block
