"""The op `prune_tokens`."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._library import public_error
from stc_kernels._registry import refuse_derivatives


def prune_tokens(
    tokens: Tensor,
    k: int,
    temporal_anchor: Tensor | None = None,
    strategy: str = "dual_anchor",
    alpha: float = 0.5,
    channels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Keep the k most novel tokens of each frame, in their order.

    `anchor_scores` and `topk_gather` in one (arXiv 2512.00891, section on STC-Pruner).

    Args:
        tokens: [F, T, D]; float32, float16 or bfloat16; any strides.
        k: how many tokens a frame, 1..T.
        temporal_anchor: what the past looked like, [D] for all frames or [F, D]; float32 or the
            tokens' dtype. With channels: [c] or [F, c], in their order. None: no past, and the
            score is against the frame's own anchor alone.
        strategy: ``dual_anchor`` or ``gaussian``.
        alpha: weight of the temporal anchor in ``dual_anchor``, 0..1.
        channels: score on these channels alone, int64 [c] of values in 0..D-1; None: on all.

    Returns:
        kept, [F, k, D] of the tokens' dtype, and index, int64 [F, k], ascending.

    Raises:
        ValueError: a wrong shape, device, k, strategy, alpha or channel, or an input that requires
            grad.
        TypeError: a wrong dtype, or not a tensor.
    """
    try:
        refuse_derivatives("prune_tokens", tokens, k, temporal_anchor, strategy, alpha, channels)
        result: tuple[Tensor, Tensor] = torch.ops.stc_kernels.prune_tokens(
            tokens, k, temporal_anchor, strategy, alpha, channels
        )
    except RuntimeError as error:
        raise public_error(error) from None
    return result
