"""The op `topk_gather`."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._library import public_error
from stc_kernels._registry import refuse_derivatives


def topk_gather(
    tokens: Tensor,
    scores: Tensor,
    k: int,
    largest: bool = True,
) -> tuple[Tensor, Tensor]:
    """Keep the k tokens of each frame with the highest (or lowest) score, in their order.

    Ties go to the lower index. A score that is not finite counts as −∞: kept last where the
    largest are kept, chosen first where the smallest are.

    Args:
        tokens: [F, T, D]; float32, float16 or bfloat16; any strides.
        scores: float32 [F, T].
        k: how many tokens a frame, 1..T.
        largest: keep the highest scores; False: the lowest.

    Returns:
        kept, [F, k, D] of the tokens' dtype, and index, int64 [F, k], ascending.

    Raises:
        ValueError: a wrong shape, device or k, or an input that requires grad.
        TypeError: a wrong dtype, or not a tensor.
    """
    try:
        refuse_derivatives("topk_gather", tokens, scores, k, largest)
        result: tuple[Tensor, Tensor] = torch.ops.stc_kernels.topk_gather(
            tokens, scores, k, largest
        )
    except RuntimeError as error:
        raise public_error(error) from None
    return result
