"""What a frame's pixels tell before the layers run: its size, and how much of it changed."""

from __future__ import annotations

import threading
import warnings
from collections.abc import MutableMapping, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from stc_stream.cacher.refusals import Attached

CHANGED = 0.25
"""A patch has changed when it differs by more than this share of the reference's contrast."""
FAINT = 0.1
"""Less contrast counts as this much: what noise does to a dark or an empty picture is no change.

In the units of a tower's input, where a picture's whole range is 2 to 4.5.
"""
_AT_ONCE = 16


def moving_camera(frames: int, refreshes: int, changes: int) -> str | None:
    """Say that a camera moves, where changes have most frames computed whole; None: they don't.

    Args:
        frames: frames run, 16 at least for anything to be said.
        refreshes: how many of them were computed whole.
        changes: how many of those because of a change; at least a quarter of the frames.
    """
    if frames < 16 or 2 * refreshes <= frames or 4 * changes < frames:
        return None
    return f"moving camera: {refreshes} of {frames} frames refreshed, little to save here"


class FrameDiff:
    """Remembers what the patch embedding of a tower was last given in this thread.

    Args:
        embedding: the tower's projection of patches: a Conv2d over frames, or any module over
            patches that come one after the other.
        keep: whether to remember the pixels, not their size alone.
    """

    def __init__(self, embedding: nn.Module, keep: bool) -> None:
        self.keeps = keep
        self._warned = False
        self._patch = embedding.kernel_size if isinstance(embedding, nn.Conv2d) else None
        self._last = threading.local()
        # A reference is compared with many frames.
        self._limits: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()
        self._hook = embedding.register_forward_pre_hook(Attached(self._remember))

    def remove(self) -> None:
        """Stop watching."""
        self._hook.remove()
        self._last = threading.local()

    def forget(self) -> None:
        """Let go of frames whose layers run without the Cacher."""
        self._last.size = self._last.pixels = None

    def grid(self, frames: int, patches: int) -> tuple[int, int] | None:
        """Return rows and columns of the batch's frames; None: the embedding does not tell.

        Args:
            frames: how many the layers were called with.
            patches: how many each has.

        Raises:
            ValueError: the layers were called with parts of the embedding's frames.
        """
        size: tuple[int, ...] | None = getattr(self._last, "size", None)
        self._last.size = None
        if size is None or self._patch is None:
            return None
        rows, columns = (side // patch for side, patch in zip(size[1:], self._patch, strict=True))
        if rows * columns == patches:
            return rows, columns
        if frames * patches == size[0] * rows * columns:
            raise ValueError(
                f"the layers were called with {frames} rows of {patches} patches for {size[0]} "
                f"frames of {rows * columns}: a tower that cuts its frames into windows, which a "
                "Cacher would take for frames, can't have one"
            )
        return None

    def take(self, sizes: Sequence[int]) -> list[Tensor] | None:
        """Return the pixels of each frame of the batch, as `shares` compares them.

        None, and a warning once: the layers were called without the tower's own patch embedding.

        Args:
            sizes: tokens of each frame, without prefix.
        """
        pixels: Tensor | None = getattr(self._last, "pixels", None)
        self._last.pixels = None
        if pixels is not None and self._patch is None:
            pixels = pixels.flatten(1)
            frames = list(pixels.split(list(sizes))) if pixels.shape[0] == sum(sizes) else []
        else:
            frames = [] if pixels is None else list(pixels.unbind())
        if len(frames) == len(sizes):
            return frames
        if not self._warned:
            self._warned = True
            warnings.warn(
                "changes are not noticed, and frames follow the plain schedule: the layers were "
                "called with other frames than the tower's patch embedding (call the whole tower)",
                RuntimeWarning,
                stacklevel=2,
            )
        return None

    def shares(self, current: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
        """Return the share of patches that differ, of each pair of frames: float32 [pairs].

        Both frames of a pair have one shape. Waits for nothing.
        """
        pairs = zip(current, reference, strict=True)
        found = []
        for _, same in groupby(pairs, key=lambda pair: pair[0].shape):
            now, before = zip(*same, strict=True)
            for first in range(0, len(now), _AT_ONCE):
                some = slice(first, first + _AT_ONCE)
                limits = self._limits_of(before[some])
                found.append(self._shares(_stacked(now[some]), _stacked(before[some]), limits))
        return found[0] if len(found) == 1 else torch.cat(found)

    def _limits_of(self, references: Sequence[Tensor]) -> Tensor:
        """Return by how much a patch of each may differ, float32 [references]."""
        found = [self._limits.get(each) for each in references]
        missing = zip(references, found, strict=True)
        new = {id(each): each for each, limit in missing if limit is None}
        if new:
            stacked = _stacked(list(new.values())).float()
            every = tuple(range(1, stacked.dim()))
            contrast = (stacked - stacked.mean(every, keepdim=True)).abs().mean(every)
            limits = CHANGED * contrast.clamp(min=FAINT)
            self._limits.update(zip(new.values(), limits.split(1), strict=True))
            found = [self._limits[each] for each in references]
        there = [limit for limit in found if limit is not None]
        return there[0] if len(there) == 1 else torch.cat(there)

    def _shares(self, current: Tensor, reference: Tensor, limits: Tensor) -> Tensor:
        difference = (current.float() - reference.float()).abs_()
        if self._patch is None:
            patches = difference.mean(dim=2)
        else:
            patches = functional.avg_pool2d(difference.mean(dim=1), self._patch).flatten(1)
        # What cannot be compared has changed.
        return (~(patches <= limits[:, None])).mean(dim=1, dtype=torch.float32)

    def _remember(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._last.size = (len(inputs[0]), *inputs[0].shape[-2:]) if inputs else None
        if self.keeps:
            self._last.pixels = inputs[0].detach() if inputs else None


def _stacked(frames: Sequence[Tensor]) -> Tensor:
    return frames[0][None] if len(frames) == 1 else torch.stack(list(frames))
