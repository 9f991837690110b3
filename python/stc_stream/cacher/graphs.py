"""Batches captured once in a graph and replayed with other inputs."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from stc_stream.cacher.queues import StreamUses

Work = Callable[[Sequence[Tensor]], Sequence[Tensor]]
MOST_GRAPHS = 16
"""Graphs held at once; the one not replayed for longest is let go."""

# A process may have one capture at a time, whichever towers its threads run.
_CAPTURING = threading.RLock()


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
    """CUDA graphs; all of a device share one pool of memory, since one is replayed at a time."""

    def __init__(self) -> None:
        # torch.cuda.graph: captures share a pool's memory where they are made on one stream.
        self._own: dict[torch.device, tuple[torch.cuda.Stream, Any]] = {}

    def refusal(self, device: torch.device) -> str | None:
        """Say why nothing can be captured on a device; None: it can."""
        return None if device.type == "cuda" else f"the tower is on {device}, not on a GPU"

    def capture(
        self, work: Work, inputs: Sequence[Tensor]
    ) -> tuple[Callable[[], None], Sequence[Tensor]]:
        """Run `work` on a stream of its own, which makes what it needs; then capture it there.

        Other threads may go on launching, allocating and waiting meanwhile. Not `torch.cuda.graph`,
        which waits for the whole device, where one of them may be capturing, and leaves this thread
        on the other stream when a capture ends in an error.
        """
        device = inputs[0].device
        with _CAPTURING, torch.cuda.device(device):
            before = torch.cuda.current_stream(device)
            if device not in self._own:
                self._own[device] = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
            own, memory = self._own[device]
            own.wait_stream(before)
            try:
                with torch.cuda.stream(own):
                    for _ in range(2):
                        work(inputs)
                    graph, outputs = _captured_once(work, inputs, memory)
            finally:
                before.wait_stream(own)
        return graph.replay, outputs


def _captured_once(
    work: Work, inputs: Sequence[Tensor], memory: Any
) -> tuple[torch.cuda.CUDAGraph, Sequence[Tensor]]:
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(pool=memory, capture_error_mode="thread_local")
    try:
        outputs = work(inputs)
    except BaseException:
        # It fails too, but with less to say.
        with suppress(Exception):
            graph.capture_end()
        raise
    graph.capture_end()
    return graph, outputs


class Inputs(Protocol):
    """What changes from call to call of a bucket's work."""

    @property
    def device(self) -> torch.device:
        """Where they are."""
        ...

    def made(self) -> tuple[Tensor, ...]:
        """Return tensors for a graph to read, of the shapes that the bucket has."""
        ...

    def write(self, held: Sequence[Tensor], before: object) -> object:
        """Write the inputs to the graph's tensors.

        Args:
            held: the tensors.
            before: what the graph's last call returned; None: they are new.
        """
        ...


@dataclass(eq=False)
class _Captured:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    replay: Callable[[], None]
    written: object = None
    uses: StreamUses = field(default_factory=StreamUses)


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
            tensor.untyped_storage().nbytes()
            for graph in self._graphs.values()
            for tensor in {id(each): each for each in (*graph.inputs, *graph.outputs)}.values()
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
        inputs: Inputs,
        work: Work,
        rehearsal: Callable[[], AbstractContextManager[None]],
        refusal: Callable[[], str | None],
    ) -> tuple[Tensor, ...] | None:
        """Run work from its graph, capturing it the second time that its bucket comes.

        Args:
            key: the bucket. Work of one bucket reads inputs of the same shapes, and otherwise the
                same memory.
            inputs: what changes from call to call.
            work: maps inputs to outputs.
            rehearsal: entered for a capture, which runs the work for no use; undoes what it did.
            refusal: says why this work can't be captured; asked before it is.

        Returns:
            The outputs, which the next replay of any graph may write over; None: run it eagerly.
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
        held = captured.inputs
        captured.uses.tell(inputs.device, lambda: held)
        captured.written = inputs.write(held, captured.written)
        captured.replay()
        self.replays += 1
        return captured.outputs

    def _note(self, key: Hashable) -> None:
        self._seen[key] = None
        while len(self._seen) > 4 * self._most:
            self._seen.popitem(last=False)

    def _captured(
        self,
        inputs: Inputs,
        work: Work,
        rehearsal: Callable[[], AbstractContextManager[None]],
        refusal: Callable[[], str | None],
    ) -> _Captured | None:
        reason = self.backend.refusal(inputs.device) or refusal()
        if reason is not None:
            self.refuse(reason)
            return None
        try:
            # What is made in inference mode could not be written outside it later.
            with torch.inference_mode(False), torch.no_grad(), rehearsal():
                static = inputs.made()
                written = inputs.write(static, None)
                replay, outputs = self.backend.capture(work, static)
        except Exception as error:
            # torch, CUDA and Triton each raise their own when something can't be captured.
            self.refuse(f"{type(error).__name__}: {error}")
            return None
        return _Captured(static, tuple(outputs), replay, written)
