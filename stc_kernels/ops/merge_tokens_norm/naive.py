"""`merge_tokens_norm` in plain PyTorch: the definition."""

from __future__ import annotations

from torch import Tensor

from stc_kernels.ops.layer_norm_gather.naive import layer_norm
from stc_kernels.ops.merge_tokens.naive import merge_tokens


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
    """Return what `merge_tokens` returns, and the layer norm of its rows."""
    merged = merge_tokens(updated, cached, slot, reference_index, residual)
    return merged, layer_norm(merged, weight, bias, eps)
