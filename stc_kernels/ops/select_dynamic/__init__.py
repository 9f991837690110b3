"""The op `select_dynamic`."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._library import public_error
from stc_kernels._registry import refuse_derivatives


def select_dynamic(
    current: Tensor,
    reference: Tensor,
    k: int,
    reference_index: Tensor | None = None,
    metric: str = "cosine",
) -> tuple[Tensor, Tensor]:
    """Choose the k tokens of each frame that are least similar to their reference.

    `patch_similarity` and the choice in one pass (arXiv 2512.00891, section on STC-Cacher). Ties go
    to the lower index; a token whose similarity is not finite is chosen before any other.

    Args:
        current: tokens of F frames, [F, T, C]; float32, float16 or bfloat16; any strides.
        reference: reference tokens, [R, T, C], of the same dtype and device.
        k: how many tokens a frame, 1..T.
        reference_index: as for `patch_similarity`.
        metric: ``cosine``, ``dot``, ``l1`` or ``l2``.

    Returns:
        index, int64 [F, k], ascending: the chosen tokens of each frame; and slot, int32 [F, T]:
        the place of each token in index, or −1.

    Raises:
        ValueError: a wrong shape, device, k, metric or index, or an input that requires grad.
        TypeError: a wrong dtype, or not a tensor.
    """
    try:
        refuse_derivatives("select_dynamic", current, reference, k, reference_index, metric)
        result: tuple[Tensor, Tensor] = torch.ops.stc_kernels.select_dynamic(
            current, reference, k, reference_index, metric
        )
    except RuntimeError as error:
        raise public_error(error) from None
    return result
