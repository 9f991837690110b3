"""The ops as layers for Hugging Face's ``kernels``: what `kernelize` puts in a model's layers.

As that package wants it they hold nothing: what a layer reads beside its arguments (its ``k``, say)
are attributes of the layer that it replaces, which are named in each docstring. They run under
``torch.compile`` and have no backward.
"""

from __future__ import annotations

from torch import Tensor, nn

from stc_kernels.ops.layer_norm_gather import layer_norm_gather
from stc_kernels.ops.merge_tokens import merge_tokens
from stc_kernels.ops.prune_tokens import prune_tokens
from stc_kernels.ops.select_dynamic import select_dynamic

__all__ = ["LayerNormGather", "MergeTokens", "PruneTokens", "SelectDynamic"]


class PruneTokens(nn.Module):
    """`stc_kernels.prune_tokens` for a layer that has ``k``, ``strategy`` and ``alpha``."""

    can_torch_compile = True
    has_backward = False

    k: int
    strategy: str
    alpha: float

    def forward(
        self, tokens: Tensor, temporal_anchor: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """[F, T, D] and the past, [D] or [F, D] → kept [F, k, D], index int64 [F, k]."""
        return prune_tokens(tokens, self.k, temporal_anchor, self.strategy, self.alpha)


class SelectDynamic(nn.Module):
    """`stc_kernels.select_dynamic` for a layer that has ``k`` and ``metric``."""

    can_torch_compile = True
    has_backward = False

    k: int
    metric: str

    def forward(
        self, current: Tensor, reference: Tensor, reference_index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """[F, T, C], [R, T, C] → index int64 [F, k], slot int32 [F, T]."""
        return select_dynamic(current, reference, self.k, reference_index, self.metric)


class MergeTokens(nn.Module):
    """`stc_kernels.merge_tokens`; reads nothing of the layer that it replaces."""

    can_torch_compile = True
    has_backward = False

    def forward(
        self,
        updated: Tensor,
        cached: Tensor,
        slot: Tensor,
        reference_index: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """[F, k, C], [R, T, C], int32 [F, T] → [F, T, C]."""
        return merge_tokens(updated, cached, slot, reference_index, residual)


class LayerNormGather(nn.Module):
    """`stc_kernels.layer_norm_gather` for a layer with ``weight``, ``bias`` and ``eps``."""

    can_torch_compile = True
    has_backward = False

    weight: Tensor
    bias: Tensor | None
    eps: float

    def forward(
        self, tokens: Tensor, index: Tensor, added: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """[F, T, C], int64 [F, k] → gathered and normed, [F, k, C] each."""
        return layer_norm_gather(tokens, index, self.weight, self.bias, added, self.eps)
