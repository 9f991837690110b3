"""The op `gather_tokens`."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._library import public_error
from stc_kernels._registry import refuse_derivatives


def gather_tokens(
    tokens: Tensor,
    index: Tensor,
) -> Tensor:
    """Return the tokens that an index names, in its order.

    Args:
        tokens: [F, T, C]; float32, float16 or bfloat16; any strides.
        index: int64 [F, k] of values in 0..T-1.

    Returns:
        [F, k, C] of the tokens' dtype, contiguous.

    Raises:
        ValueError: a wrong shape or device, an index out of range, an input that requires grad.
        TypeError: a wrong dtype, or not a tensor.
    """
    try:
        refuse_derivatives("gather_tokens", tokens, index)
        result: Tensor = torch.ops.stc_kernels.gather_tokens(tokens, index)
    except RuntimeError as error:
        raise public_error(error) from None
    return result
