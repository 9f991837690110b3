"""The op `patch_similarity`."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._library import public_error
from stc_kernels._registry import refuse_derivatives


def patch_similarity(
    current: Tensor,
    reference: Tensor,
    reference_index: Tensor | None = None,
    metric: str = "cosine",
) -> Tensor:
    """Return how similar each token is to the reference token at the same place.

    The Cacher's score (arXiv 2512.00891, section on STC-Cacher): high means unchanged. ``cosine``
    is a·b / (max(‖a‖, 1e-8) · max(‖b‖, 1e-8)), ``dot`` a·b, ``l1`` −Σ|a − b|, ``l2`` −‖a − b‖₂;
    sums are in float32.

    Args:
        current: tokens of F frames, [F, T, C]; float32, float16 or bfloat16; any strides.
        reference: reference tokens, [R, T, C], of the same dtype and device.
        reference_index: which reference each frame is held against, int64 [F] of values in
            0..R-1; None: R is 1, or R equals F and they pair up.
        metric: ``cosine``, ``dot``, ``l1`` or ``l2``.

    Returns:
        float32 [F, T].

    Raises:
        ValueError: a wrong shape, device, metric or index, or an input that requires grad.
        TypeError: a wrong dtype, or not a tensor.
    """
    try:
        refuse_derivatives("patch_similarity", current, reference, reference_index, metric)
        result: Tensor = torch.ops.stc_kernels.patch_similarity(
            current, reference, reference_index, metric
        )
    except RuntimeError as error:
        raise public_error(error) from None
    return result
