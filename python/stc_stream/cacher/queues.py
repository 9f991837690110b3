"""Forwards on several CUDA streams: one after the other, over memory that outlives its last use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Turns:
    """Has a device finish one piece of work before it starts the next, on whichever stream."""

    def __init__(self) -> None:
        self._last: torch.cuda.Event | None = None

    @contextmanager
    def next(self, device: torch.device) -> Iterator[None]:
        """Run what is launched inside, on the current stream of `device`, after all before it."""
        if device.type != "cuda":
            yield
            return
        if self._last is not None:
            self._last.wait(torch.cuda.current_stream(device))
        try:
            yield
        finally:
            self._last = torch.cuda.current_stream(device).record_event()


class StreamUses:
    """Tells the allocator which streams use some memory, beside the one that it was made on.

    Else it would give the memory to others while such a stream still reads it (torch's
    `Tensor.record_stream`).
    """

    def __init__(self) -> None:
        self._told: set[torch.cuda.Stream] = set()

    def tell(self, device: torch.device, tensors: Callable[[], Iterable[Tensor]]) -> None:
        """Note that the current stream of `device` uses what `tensors` returns.

        It is asked once a stream, until `forget`.
        """
        if device.type != "cuda":
            return
        stream = torch.cuda.current_stream(device)
        if stream not in self._told:
            self._told.add(stream)
            for tensor in tensors():
                tensor.record_stream(stream)

    def forget(self) -> None:
        """Ask again of each stream, since there are other tensors."""
        self._told.clear()
