"""Batches captured once in a graph and replayed with other inputs."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Work = Callable[[Sequence[Tensor]], Sequence[Tensor]]
MOST_GRAPHS = 16
"""Graphs held at once; the one not replayed for longest is let go."""


class Backend(Protocol):
    """Captures work on some device."""

    def refusal(self, device: torch.device) -> str | None:
        """Say why nothing can be captured on a device; None: it can."""
        ...

    def capture(
        self, work: Work, inputs: Sequence[Tensor]
    ) -> tuple[Callable[[], None], Sequence[Tensor]]:
        """Run `work` over `inputs` once, and return what repeats it and what it then writes."""
        ...


class CudaBackend:
    """CUDA graphs; all share one pool of memory, since one is replayed at a time."""

    def __init__(self) -> None:
        self._memory: Any = None

    def refusal(self, device: torch.device) -> str | None:
        """Say why nothing can be captured on a device; None: it can."""
        return None if device.type == "cuda" else f"the tower is on {device}, not on a GPU"

    def capture(
        self, work: Work, inputs: Sequence[Tensor]
    ) -> tuple[Callable[[], None], Sequence[Tensor]]:
        """Run `work` on a side stream, which makes what it needs on first use; then capture it."""
        side = torch.cuda.Stream(inputs[0].device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                work(inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self._memory):
            outputs = work(inputs)
        return graph.replay, outputs


@dataclass(frozen=True, eq=False)
class _Captured:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    replay: Callable[[], None]


class GraphStore:
    """Graphs by bucket: work of the same shapes over the same memory.

    Args:
        backend: what captures.
        most: how many graphs are held.
    """

    def __init__(self, backend: Backend | None = None, most: int = MOST_GRAPHS) -> None:
        self.backend: Backend = CudaBackend() if backend is None else backend
        self.replays = 0
        self._most = most
        self._graphs: OrderedDict[Hashable, _Captured] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._refused = False

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def bytes(self) -> int:
        """Bytes of the inputs and outputs of graphs, without what they need while they run."""
        return sum(
            tensor.numel() * tensor.element_size()
            for graph in self._graphs.values()
            for tensor in (*graph.inputs, *graph.outputs)
        )

    def clear(self) -> None:
        """Let go of all graphs."""
        self._graphs.clear()
        self._seen.clear()

    def refuse(self, reason: str) -> None:
        """Run everything eagerly from now on, and warn of it once."""
        if not self._refused:
            self._refused = True
            self.clear()
            warnings.warn(
                f"batches are not captured in CUDA graphs, but run eagerly: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )

    def run(
        self,
        key: Hashable,
        inputs: Sequence[Tensor],
        work: Work,
        rehearsal: AbstractContextManager[None],
        refusal: Callable[[], str | None],
    ) -> list[Tensor] | None:
        """Run work from its graph, capturing it the second time that its bucket comes.

        Args:
            key: the bucket. Work of one bucket reads inputs of the same shapes, and otherwise the
                same memory.
            inputs: what changes from call to call.
            work: maps inputs to outputs.
            rehearsal: entered for a capture, which runs the work for no use; undoes what it did.
            refusal: says why this work can't be captured; asked before it is.

        Returns:
            The outputs, the caller's to keep; None: run it eagerly.
        """
        if self._refused:
            return None
        captured = self._graphs.get(key)
        if captured is None:
            if key not in self._seen:
                self._note(key)
                return None
            captured = self._captured(inputs, work, rehearsal, refusal)
            if captured is None:
                return None
            self._graphs[key] = captured
            while len(self._graphs) > self._most:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        for static, given in zip(captured.inputs, inputs, strict=True):
            static.copy_(given)
        captured.replay()
        self.replays += 1
        return [output.clone() for output in captured.outputs]

    def _note(self, key: Hashable) -> None:
        self._seen[key] = None
        while len(self._seen) > 4 * self._most:
            self._seen.popitem(last=False)

    def _captured(
        self,
        inputs: Sequence[Tensor],
        work: Work,
        rehearsal: AbstractContextManager[None],
        refusal: Callable[[], str | None],
    ) -> _Captured | None:
        reason = self.backend.refusal(inputs[0].device) or refusal()
        if reason is not None:
            self.refuse(reason)
            return None
        try:
            # What is made in inference mode could not be written outside it later.
            with torch.inference_mode(False), torch.no_grad(), rehearsal:
                static = tuple(tensor.clone() for tensor in inputs)
                replay, outputs = self.backend.capture(work, static)
        except Exception as error:
            # torch, CUDA and Triton each raise their own when something can't be captured.
            self.refuse(f"{type(error).__name__}: {error}")
            return None
        return _Captured(static, tuple(outputs), replay)
