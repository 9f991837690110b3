"""The op `merge_tokens`."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._library import public_error
from stc_kernels._registry import refuse_derivatives


def merge_tokens(
    updated: Tensor,
    cached: Tensor,
    slot: Tensor,
    reference_index: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Put recomputed tokens and reused ones together into whole frames.

    out[f, t] is updated[f, slot[f, t]] where the slot is not negative, and
    cached[reference_index[f], t] elsewhere, plus residual[f, t] if one is given: the residual is
    added to reused tokens alone, updated ones are final (arXiv 2512.00891, section on STC-Cacher;
    with the layer's input as residual and A_ref + M_ref as cache this closes a selective layer).

    Args:
        updated: recomputed tokens, [F, k, C]; float32, float16 or bfloat16; any strides.
        cached: reference tokens, [R, T, C], of the same dtype and device.
        slot: int32 [F, T] of values in −1..k-1, as `select_dynamic` returns it.
        reference_index: which reference each frame reuses, int64 [F] of values in 0..R-1; None: R
            is 1, or R equals F and they pair up.
        residual: added to reused tokens in float32, [F, T, C] of the same dtype; None: nothing.

    Returns:
        [F, T, C] of the same dtype, contiguous.

    Raises:
        ValueError: a wrong shape or device, an index out of range, an input that requires grad.
        TypeError: a wrong dtype, or not a tensor.
    """
    try:
        refuse_derivatives("merge_tokens", updated, cached, slot, reference_index, residual)
        result: Tensor = torch.ops.stc_kernels.merge_tokens(
            updated, cached, slot, reference_index, residual
        )
    except RuntimeError as error:
        raise public_error(error) from None
    return result
