"""What a frame's pixels tell before the layers run: its size, and how much of it changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANGED = 0.25
"""A patch has changed when it differs by more than this share of the reference's contrast."""


class PixelWatch:
    """Remembers what the patch embedding of a tower was last given in this thread.

    Args:
        embedding: the tower's projection of patches: a Conv2d over frames, or any module over
            patches that come one after the other.
        keep: whether to remember the pixels, not their size alone.
    """

    def __init__(self, embedding: nn.Module, keep: bool) -> None:
        self.keeps = keep
        self._patch = embedding.kernel_size if isinstance(embedding, nn.Conv2d) else None
        self._last = threading.local()
        disable: Callable[..., Callable[..., None]] = torch.compiler.disable
        self._hook = embedding.register_forward_pre_hook(disable(self._remember))

    def remove(self) -> None:
        """Stop watching."""
        self._hook.remove()
        self._last = threading.local()

    def grid(self, patches: int) -> tuple[int, int] | None:
        """Return rows and columns of the batch's frames; None: the embedding does not tell.

        Args:
            patches: how many a frame has.
        """
        size: tuple[int, ...] | None = getattr(self._last, "size", None)
        self._last.size = None
        if size is None or self._patch is None:
            return None
        rows, columns = (side // patch for side, patch in zip(size, self._patch, strict=True))
        return (rows, columns) if rows * columns == patches else None

    def take(self, sizes: Sequence[int]) -> list[Tensor]:
        """Return the pixels of each frame of the batch, as `changes` compares them.

        Args:
            sizes: tokens of each frame, without prefix.

        Raises:
            RuntimeError: the layers were called without the tower's own patch embedding.
        """
        pixels: Tensor | None = getattr(self._last, "pixels", None)
        self._last.pixels = None
        if pixels is not None and self._patch is None:
            pixels = pixels.flatten(1)
            frames = list(pixels.split(list(sizes))) if pixels.shape[0] == sum(sizes) else []
        else:
            frames = [] if pixels is None else list(pixels)
        if len(frames) != len(sizes):
            raise RuntimeError(
                "changes are watched, but the layers were called with other frames than the "
                "tower's patch embedding: call the whole tower"
            )
        return frames

    def changes(self, current: Sequence[Tensor], reference: Sequence[Tensor]) -> list[float]:
        """Return the share of patches that differ, of each pair of frames; waits for the device."""
        shares = [self._share(*pair) for pair in zip(current, reference, strict=True)]
        found: list[float] = torch.stack(shares).tolist()
        return found

    def _share(self, current: Tensor, reference: Tensor) -> Tensor:
        current, reference = current.float(), reference.float()
        contrast = (reference - reference.mean()).abs().mean()
        difference = (current - reference).abs()
        if self._patch is None:
            patches = difference.mean(dim=1)
        else:
            patches = functional.avg_pool2d(difference.mean(dim=0, keepdim=True), self._patch)
        # What cannot be compared has changed.
        return (~(patches <= CHANGED * contrast)).float().mean()

    def _remember(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._last.size = tuple(inputs[0].shape[-2:]) if inputs else None
        if self.keeps:
            self._last.pixels = inputs[0].detach() if inputs else None
