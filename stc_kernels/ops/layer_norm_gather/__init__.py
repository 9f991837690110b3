"""The op `layer_norm_gather`."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._library import public_error
from stc_kernels._registry import refuse_derivatives


def layer_norm_gather(
    tokens: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    added: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Return chosen tokens, plus what is added to them, and the layer norm of the sums.

    A selective layer's second norm (arXiv 2512.00891, section on STC-Cacher): with the layer's
    input as tokens and the attention branch as added, gathered is h = x + A of the recomputed
    tokens and normed is LN2(h), of no other token.

    Args:
        tokens: [F, T, C]; float32, float16 or bfloat16; any strides.
        index: int64 [F, k] of values in 0..T-1.
        weight: scale of the norm, [C]; float32 or the tokens' dtype.
        bias: shift of the norm, [C], likewise; None: none.
        added: added to the chosen tokens in float32, [F, k, C] of the tokens' dtype; None:
            nothing.
        eps: added to the variance, 0 or more.

    Returns:
        gathered and normed, [F, k, C] of the tokens' dtype, contiguous; statistics in float32.

    Raises:
        ValueError: a wrong shape, device or eps, an index out of range, an input that requires
            grad.
        TypeError: a wrong dtype, or not a tensor.
    """
    try:
        refuse_derivatives("layer_norm_gather", tokens, index, weight, bias, added, eps)
        result: tuple[Tensor, Tensor] = torch.ops.stc_kernels.layer_norm_gather(
            tokens, index, weight, bias, added, eps
        )
    except RuntimeError as error:
        raise public_error(error) from None
    return result
