"""The op `anchor_scores`."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._library import public_error
from stc_kernels._registry import refuse_derivatives


def anchor_scores(
    tokens: Tensor,
    temporal_anchor: Tensor | None = None,
    strategy: str = "dual_anchor",
    alpha: float = 0.5,
    channels: Tensor | None = None,
) -> Tensor:
    """Return how novel each token is against its own frame and against the past.

    The Pruner's score (arXiv 2512.00891, section on STC-Pruner): the higher, the sooner kept.
    ``dual_anchor``: α (1 − cos(z, temporal)) + (1 − α)(1 − cos(z, spatial)), where spatial is the
    mean of the frame's tokens. ``gaussian``: −[g(ẑ, mean of ẑ) + g(ẑ, temporal / ‖temporal‖)] with
    ẑ = z/‖z‖ and g(x, c) = Σ exp(−‖x − c‖² / 2a) over a in 1/8, 1/4, 1/2, 1, 2. Sums are in
    float32. A token that is not finite, or too large for its squares to be, is left out of the
    frame's mean.

    Args:
        tokens: [F, T, D]; float32, float16 or bfloat16; any strides.
        temporal_anchor: what the past looked like, [D] for all frames or [F, D]; float32 or the
            tokens' dtype. With channels: [c] or [F, c], in their order. None: no past, and the
            score is against the frame's own anchor alone.
        strategy: ``dual_anchor`` or ``gaussian``.
        alpha: weight of the temporal anchor in ``dual_anchor``, 0..1.
        channels: score on these channels alone, int64 [c] of values in 0..D-1; None: on all.

    Returns:
        float32 [F, T].

    Raises:
        ValueError: a wrong shape, device, strategy, alpha or channel, or an input that requires
            grad.
        TypeError: a wrong dtype, or not a tensor.
    """
    try:
        refuse_derivatives("anchor_scores", tokens, temporal_anchor, strategy, alpha, channels)
        result: Tensor = torch.ops.stc_kernels.anchor_scores(
            tokens, temporal_anchor, strategy, alpha, channels
        )
    except RuntimeError as error:
        raise public_error(error) from None
    return result
