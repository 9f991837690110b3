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

_lock = threading.Lock()
_unused: dict[torch.device, Tensor] = {}
_by_stream: dict[tuple[torch.device, int], Tensor] = {}


def zeroed_counters(count: int, like: Tensor) -> Tensor:
    """Return at least `count` int32 counters at zero on the device of `like`.

    The kernel they are given to must be launched next on the current stream, and must leave them
    at zero.
    """
    # A tracer's tensors are of another type; on the CPU (Triton's interpreter) zeroing is free.
    if type(like) not in (Tensor, torch.nn.Parameter) or not like.is_cuda:
        return torch.zeros(count, dtype=torch.int32, device=like.device)
    if torch.cuda.is_current_stream_capturing():
        return _captured(count, like.device)
    stream = torch.cuda.current_stream(like.device).cuda_stream
    counters = _by_stream.get((like.device, stream))
    if counters is None or counters.numel() < count:
        _keep_some_for_graphs(like.device)
        counters = torch.zeros(max(4096, 2 * count), dtype=torch.int32, device=like.device)
        _by_stream[like.device, stream] = counters
    return counters


def _captured(count: int, device: torch.device) -> Tensor:
    with _lock:
        unused = _unused.get(device)
        if unused is not None and unused.numel() >= count:
            _unused[device] = unused[count:]
            return unused[:count]
    # Nothing can be zeroed beforehand any more: the graph does it, in a node of its own.
    return torch.zeros(count, dtype=torch.int32, device=device)


def _keep_some_for_graphs(device: torch.device) -> None:
    with _lock:
        if device not in _unused:
            _unused[device] = torch.zeros(_BLOCK, dtype=torch.int32, device=device)
            # Zero for every stream from here on: once a device, never a call.
            torch.cuda.synchronize(device)
