"""`select_dynamic` in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels.ops.patch_similarity.naive import patch_similarity
from stc_kernels.ops.topk_gather.naive import topk_index


def select_dynamic(
    current: Tensor,
    reference: Tensor,
    k: int,
    reference_index: Tensor | None = None,
    metric: str = "cosine",
) -> tuple[Tensor, Tensor]:
    """Return the k tokens of lowest similarity and the place of each token among them."""
    similarity = patch_similarity(current, reference, reference_index, metric)
    index = topk_index(similarity, k, largest=False)  # [F, k]
    slot = torch.full(similarity.shape, -1, dtype=torch.int32, device=current.device)
    places = torch.arange(k, dtype=torch.int32, device=current.device)
    slot.scatter_(1, index, places.expand_as(index))
    return index, slot
