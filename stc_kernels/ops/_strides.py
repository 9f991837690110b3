"""The one memory layout of every op's results."""

from __future__ import annotations

import torch
from torch import Tensor


def contiguous(tensor: Tensor) -> Tensor:
    """Return the tensor if its strides are those of a new one, else a copy.

    `Tensor.contiguous` doesn't mind the strides of dimensions of size 1; a compiler compares them.
    """
    if tensor.stride() == torch.empty(tensor.shape, device="meta").stride():
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
