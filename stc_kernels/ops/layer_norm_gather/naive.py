"""`layer_norm_gather` in plain PyTorch: the definition."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from stc_kernels.ops._strides import contiguous
from stc_kernels.ops.gather_tokens.naive import gather_tokens


def layer_norm_gather(
    tokens: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    added: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Return the tokens that `index` names, with something added, and their layer norm."""
    gathered = gather_tokens(tokens, index)
    if added is not None:
        gathered = contiguous((gathered.float() + added.float()).to(tokens.dtype))
    return gathered, layer_norm(gathered, weight, bias, eps)


def layer_norm(tokens: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Return the layer norm over the channels, in float32, rounded once."""
    float_bias = None if bias is None else bias.float()
    shape = (tokens.shape[-1],)
    normed = functional.layer_norm(tokens.float(), shape, weight.float(), float_bias, eps)
    return normed.to(tokens.dtype)
