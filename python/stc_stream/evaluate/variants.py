"""One tower's weights, run in several ways."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stc_stream.cacher import Cacher, CacherConfig, StreamFrame, attach_cacher
from stc_stream.cacher.graphs import Backend, CudaBackend
from stc_stream.towers.load import VisionModel

Inputs = Mapping[str, Tensor]
Dense = Callable[[Inputs], Tensor]


def shared_copy(module: nn.Module) -> nn.Module:
    """Return a module of its own that uses the very weights of `module`."""
    weights = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(weight): weight for weight in weights})


def eager(module: nn.Module) -> Dense:
    """Return the tower as it is."""

    def run(inputs: Inputs) -> Tensor:
        tokens: Tensor = module(**inputs).last_hidden_state
        return tokens

    return run


def compiled(module: nn.Module) -> Dense:
    """Return the tower under `torch.compile`, for the shapes it is given; quiet about it."""
    torch.compiler.reset()
    fast: Any = torch.compile(module, dynamic=False)

    def run(inputs: Inputs) -> Tensor:
        tokens: Tensor = fast(**inputs).last_hidden_state
        return tokens

    return run


def graphed(dense: Dense, inputs: Inputs, backend: Backend | None = None) -> Dense:
    """Return a dense tower captured in a CUDA graph, for inputs of these shapes.

    As a Cacher's does, it takes new inputs each time and gives an output that is safe to keep.
    """
    names = list(inputs)

    def work(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [dense(dict(zip(names, tensors, strict=True)))]

    static = [inputs[name].clone() for name in names]
    replay, outputs = (backend or CudaBackend()).capture(work, static)

    def run(given: Inputs) -> Tensor:
        for name, tensor in zip(names, static, strict=True):
            tensor.copy_(given[name])
        replay()
        return outputs[0].clone()

    return run


class ScheduledCacher:
    """A tower with a Cacher, of whose streams the caller says which refresh.

    Args:
        tower: the tower; a copy of its module that shares its weights gets the Cacher.
        update_ratio: as in `CacherConfig`.
        graph: whether batches run in CUDA graphs.
    """

    def __init__(self, tower: VisionModel, update_ratio: float, graph: bool = False) -> None:
        self.update_ratio = update_ratio
        self.graph = graph
        self.module = shared_copy(tower.module)
        self._turns = _Turns()
        config = CacherConfig.paper(update_ratio, policy=self._turns, cuda_graph=graph)
        self.cacher: Cacher = attach_cacher(self.module, config)

    def run(self, inputs: Inputs, streams: int, refreshed: frozenset[int]) -> Tensor:
        """Run a frame of each stream; those of `refreshed` are computed whole."""
        self._turns.refreshed = refreshed
        with self.cacher.streams(range(streams)):
            tokens: Tensor = self.module(**inputs).last_hidden_state
        return tokens


class _Turns:
    """A policy that does as it is told."""

    refreshed: frozenset[int] = frozenset()

    def refreshes(self, frame: StreamFrame) -> bool:
        return frame.stream in self.refreshed


@contextmanager
def quiet() -> Iterator[None]:
    """Keep compilers from writing over the progress bar."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
