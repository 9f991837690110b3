"""`merge_tokens` on a GPU: one launch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stc_kernels._blocks import block_sizes
from stc_kernels._launching import blocks, launch, reference_stride, unit_channels
from stc_kernels.ops.merge_tokens.kernel import merge_tokens_kernel


def merge_tokens(
    updated: Tensor,
    cached: Tensor,
    slot: Tensor,
    reference_index: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Return updated tokens where a token has a slot, reused ones elsewhere."""
    pointers, numbers, constants = merge_arguments(updated, cached, slot, reference_index, residual)
    frames, tokens, channels = updated.shape[0], cached.shape[1], cached.shape[2]
    out = torch.empty((frames, tokens, channels), dtype=cached.dtype, device=cached.device)
    sizes = block_sizes("merge_tokens", cached)
    launch(
        merge_tokens_kernel,
        frames * blocks(tokens, sizes["BLOCK_T"]),
        *pointers,
        out,
        *numbers,
        **constants,
        **sizes,
    )
    return out


def merge_arguments(
    updated: Tensor,
    cached: Tensor,
    slot: Tensor,
    reference_index: Tensor | None,
    residual: Tensor | None,
) -> tuple[list[Tensor], list[Any], dict[str, bool]]:
    """Return what both merging kernels take: tensors, sizes and strides, constants."""
    updated, cached = unit_channels(updated), unit_channels(cached)
    added = cached if residual is None else unit_channels(residual)
    index = slot if reference_index is None else reference_index.contiguous()
    numbers = [cached.shape[1], cached.shape[2], updated.shape[1], cached.shape[0]]
    numbers += [updated.stride(0), updated.stride(1), reference_stride(cached), cached.stride(1)]
    numbers += [added.stride(0), added.stride(1), slot.stride(0), slot.stride(1)]
    constants = {"HAS_INDEX": reference_index is not None, "HAS_RESIDUAL": residual is not None}
    return [updated, cached, added, slot, index], numbers, constants
