"""The op `merge_tokens_norm`."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._library import public_error
from stc_kernels._registry import refuse_derivatives


def merge_tokens_norm(
    updated: Tensor,
    cached: Tensor,
    slot: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    reference_index: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Put recomputed and reused tokens together, and norm every row for the next layer.

    `merge_tokens` followed by the layer norm that the next layer begins with, in one pass
    (arXiv 2512.00891, section on STC-Cacher).

    Args:
        updated: recomputed tokens, [F, k, C]; float32, float16 or bfloat16; any strides.
        cached: reference tokens, [R, T, C], of the same dtype and device.
        slot: int32 [F, T] of values in −1..k-1, as `select_dynamic` returns it.
        weight: scale of the norm, [C]; float32 or the tokens' dtype.
        bias: shift of the norm, [C], likewise; None: none.
        reference_index: which reference each frame reuses, int64 [F] of values in 0..R-1; None: R
            is 1, or R equals F and they pair up.
        residual: added to reused tokens in float32, [F, T, C] of the same dtype; None: nothing.
        eps: added to the variance, 0 or more.

    Returns:
        merged and normed, [F, T, C] of the same dtype, contiguous; statistics in float32.

    Raises:
        ValueError: a wrong shape, device or eps, an index out of range, an input that requires
            grad.
        TypeError: a wrong dtype, or not a tensor.
    """
    try:
        refuse_derivatives(
            "merge_tokens_norm", updated, cached, slot, weight, bias, reference_index, residual, eps
        )
        result: tuple[Tensor, Tensor] = torch.ops.stc_kernels.merge_tokens_norm(
            updated, cached, slot, weight, bias, reference_index, residual, eps
        )
    except RuntimeError as error:
        raise public_error(error) from None
    return result
