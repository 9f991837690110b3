"""`patch_similarity` on a GPU: one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._blocks import block_sizes
from stc_kernels._launching import blocks, launch, reference_stride, unit_channels
from stc_kernels.ops.patch_similarity.kernel import patch_similarity_kernel

METRICS = {"cosine": 0, "dot": 1, "l1": 2, "l2": 3}


def patch_similarity(
    current: Tensor,
    reference: Tensor,
    reference_index: Tensor | None = None,
    metric: str = "cosine",
) -> Tensor:
    """Return the similarity of each token to the reference token at its place."""
    current, reference = unit_channels(current), unit_channels(reference)
    frames, tokens, channels = current.shape
    out = torch.empty((frames, tokens), dtype=torch.float32, device=current.device)
    sizes = block_sizes("patch_similarity", current)
    launch(
        patch_similarity_kernel,
        frames * blocks(tokens, sizes["BLOCK_T"]),
        current,
        reference,
        current if reference_index is None else reference_index.contiguous(),
        out,
        tokens,
        channels,
        reference.shape[0],
        current.stride(0),
        current.stride(1),
        reference_stride(reference),
        reference.stride(1),
        METRIC=METRICS[metric],
        HAS_INDEX=reference_index is not None,
        **sizes,
    )
    return out
