"""Frame skipping: the tower runs on every Nth frame, and the others get its last output again."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from stc_stream.evaluate.patched import PatchedTower


@dataclass(frozen=True)
class FrameSkipping:
    """What a program does that samples fewer frames, but must say something about each of them.

    No paper: the simplest rival. What is skipped costs nothing, not even its patch embedding.

    Attributes:
        refresh_interval: frames of a stream from one that is computed to the next.
    """

    refresh_interval: int = 4

    def __post_init__(self) -> None:
        if self.refresh_interval < 1:
            raise ValueError(f"refresh_interval must be at least 1, but is {self.refresh_interval}")

    def attach(self, tower: nn.Module) -> SkippingTower:
        """Return the tower, which runs on every Nth frame until the context is left."""
        return SkippingTower(tower, self.refresh_interval)


class SkippingTower(PatchedTower):
    """A tower that gives the output of its stream's last computed frame again.

    Args:
        model: a vision tower that can be read, or a model that holds exactly one.
        interval: frames of a stream from one that is computed to the next.
    """

    def __init__(self, model: nn.Module, interval: int) -> None:
        super().__init__(model)
        self._interval = interval
        self._seen: dict[Hashable, int] = {}
        self._held: dict[Hashable, tuple[list[Any], TreeSpec]] = {}
        module = model.get_submodule(self.tower.path)
        self._densely = module.forward
        self.replace_forward(module, self._run)

    def forget(self, *streams: Hashable) -> None:
        """Let go of these streams' outputs, or of all."""
        for held in (self._seen, self._held):
            for name in streams or tuple(held):
                held.pop(name, None)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        sizes = self._sizes(args, kwargs)
        names = self.names(len(sizes))
        seen, computed = dict(self._seen), []
        for name in names:
            count = seen.get(name, 0)
            computed.append(count % self._interval == 0)
            seen[name] = count + 1
        new: list[tuple[list[Any], TreeSpec]] = []
        if any(computed):
            args, kwargs = _rows((args, kwargs), sizes, computed)
            output = self._densely(*args, **kwargs)
            new = _frames(output, [size for size, own in zip(sizes, computed, strict=True) if own])
        # Not before: a forward that failed leaves every stream as it was.
        self._seen, fresh, found = seen, iter(new), []
        for name, own in zip(names, computed, strict=True):
            if own:
                self._held[name] = next(fresh)
            found.append(self._held[name])
        self.note(computed, [float(own) for own in computed])
        leaves = zip(*(tensors for tensors, _ in found), strict=True)
        return tree_unflatten([_joined(pieces) for pieces in leaves], found[0][1])

    def _sizes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
        """Return how many rows of the input each frame has."""
        tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        if not self.tower.packed:
            return [1] * len(tensors[0])
        grids = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
        return [int(t) * int(h) * int(w) for t, h, w in grids.tolist()]


def _rows(tree: Any, sizes: Sequence[int], chosen: Sequence[bool]) -> Any:
    """Return arguments with the rows of the chosen frames only."""
    leaves, spec = tree_flatten(tree)
    keep = torch.tensor(chosen)

    def rows(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0:
            return leaf
        if len(leaf) == len(sizes):
            return leaf[keep.to(leaf.device)]
        if len(leaf) == sum(sizes):
            return leaf[keep.repeat_interleave(torch.tensor(sizes)).to(leaf.device)]
        return leaf

    return tree_unflatten([rows(leaf) for leaf in leaves], spec)


def _frames(output: Any, sizes: Sequence[int]) -> list[tuple[list[Any], TreeSpec]]:
    """Return a tower's output in pieces, one a frame; its rows are shared out by `sizes`."""
    leaves, spec = tree_flatten(output)
    total = sum(sizes)
    pieces = [
        leaf.split([len(leaf) * size // total for size in sizes])
        if isinstance(leaf, Tensor)
        else [leaf] * len(sizes)
        for leaf in leaves
    ]
    return [([*parts], spec) for parts in zip(*pieces, strict=True)]


def _joined(parts: Sequence[Any]) -> Any:
    """Return one piece of output for all frames: an output may hold None beside its tensors."""
    return torch.cat(list(parts)) if isinstance(parts[0], Tensor) else parts[0]


METHOD = FrameSkipping
