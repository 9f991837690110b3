"""What rules that look at the frame before share: likeness in place, and frames of other sizes."""

from __future__ import annotations

import torch
from torch import Tensor

import stc_kernels
from stc_stream.pruner.strategies.strategy import Kept


def likeness_to_frame_before(tokens: Tensor, last: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return each token's cosine with the token at its place in the frame before, and a last frame.

    Args:
        tokens: [F, T, D], consecutive frames.
        last: the frame before them, [T, D]; None: they begin a stream.

    Returns:
        Cosines, float32 [F, T], at most 1; −inf in a stream's first frame, unlike anything.
        And the last of these frames, to be remembered, [T, D].
    """
    before = tokens[:1] if last is None else last[None]
    before = torch.cat([before, tokens[:-1]])
    cosines = stc_kernels.patch_similarity(tokens, before).clamp(max=1)
    if last is None:
        cosines[0] = -torch.inf
    return cosines, tokens[-1].clone()


def lists_of(tokens: Tensor, index: list[Tensor]) -> tuple[Kept, Kept]:
    """Return the tokens at places of each frame, and the places, as lists of one tensor a frame."""
    kept = [frame[places] for frame, places in zip(tokens, index, strict=True)]
    return kept, index
