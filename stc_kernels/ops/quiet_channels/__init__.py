"""The op `quiet_channels`."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._library import public_error
from stc_kernels._registry import refuse_derivatives


def quiet_channels(
    tokens: Tensor,
    keep: int,
) -> Tensor:
    """Return the channels that vary least over all tokens of a call.

    The released Pruner scores on these alone. Variances are biased (divided by F·T), summed in
    float64 and compared in float32; ties go to the lower channel, a variance that is not finite
    comes last.

    Args:
        tokens: [F, T, D]; float32, float16 or bfloat16; any strides.
        keep: how many channels, 1..D.

    Returns:
        int64 [keep], ascending by variance.

    Raises:
        ValueError: a wrong shape or keep, or an input that requires grad.
        TypeError: a wrong dtype, or not a tensor.
    """
    try:
        refuse_derivatives("quiet_channels", tokens, keep)
        result: Tensor = torch.ops.stc_kernels.quiet_channels(tokens, keep)
    except RuntimeError as error:
        raise public_error(error) from None
    return result
