"""`select_dynamic` on a GPU: one launch, on AMD two."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._blocks import block_sizes
from stc_kernels._counters import zeroed_counters
from stc_kernels._launching import (
    blocks,
    counts_finished_programs,
    launch,
    next_power_of_2,
    reference_stride,
    selection_warps,
    unit_channels,
)
from stc_kernels.ops.patch_similarity.launch import METRICS, patch_similarity
from stc_kernels.ops.select_dynamic.kernel import choose_tokens_kernel, select_dynamic_kernel


def select_dynamic(
    current: Tensor,
    reference: Tensor,
    k: int,
    reference_index: Tensor | None = None,
    metric: str = "cosine",
) -> tuple[Tensor, Tensor]:
    """Return the k tokens of lowest similarity and the place of each token among them."""
    current, reference = unit_channels(current), unit_channels(reference)
    frames, tokens, channels = current.shape
    device = current.device
    index = torch.empty((frames, k), dtype=torch.int64, device=device)
    slot = torch.empty((frames, tokens), dtype=torch.int32, device=device)
    sizes = block_sizes("select_dynamic", current)
    sizes["num_warps"] = selection_warps(int(tokens), sizes["num_warps"])
    held_in_registers = next_power_of_2(int(tokens))
    if not counts_finished_programs():
        similarity = patch_similarity(current, reference, reference_index, metric)
        launch(
            choose_tokens_kernel,
            frames,
            similarity,
            index,
            slot,
            tokens,
            k,
            BLOCK_TOKENS=held_in_registers,
            num_warps=sizes["num_warps"],
        )
        return index, slot
    similarity = torch.empty((frames, tokens), dtype=torch.float32, device=device)
    launch(
        select_dynamic_kernel,
        frames * blocks(tokens, sizes["BLOCK_T"]),
        current,
        reference,
        current if reference_index is None else reference_index.contiguous(),
        similarity,
        zeroed_counters(frames, current),
        index,
        slot,
        tokens,
        channels,
        k,
        reference.shape[0],
        current.stride(0),
        current.stride(1),
        reference_stride(reference),
        reference.stride(1),
        METRIC=METRICS[metric],
        HAS_INDEX=reference_index is not None,
        BLOCK_TOKENS=held_in_registers,
        **sizes,
    )
    return index, slot
