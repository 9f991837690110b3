"""Use a single op without any model: which patches of a picture changed since another?

A bright square moves over a noisy background. `select_dynamic` compares the patches of both
pictures and chooses the 18 that changed most, drawn as #: where the square was, and where it is.

Run: python examples/use_one_op.py
"""

from __future__ import annotations

import torch
from torch import Tensor

import stc_kernels

SIDE, PATCH, CHOSEN = 96, 8, 18


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    background = 0.2 * torch.rand(3, SIDE, SIDE, generator=generator)
    before, after = background.clone(), background.clone()
    before[:, 16:40, 16:40] = 1.0
    after[:, 48:72, 40:64] = 1.0
    after += 0.01 * torch.randn(3, SIDE, SIDE, generator=generator)

    index, slot = stc_kernels.select_dynamic(
        patches(after), patches(before), k=CHOSEN, metric="l2"
    )  # int64 [1, k] and int32 [1, T]

    for row in (slot[0] >= 0).view(SIDE // PATCH, SIDE // PATCH).tolist():
        print("".join("#" if changed else "." for changed in row))
    print(f"{index.shape[1]} of {slot.shape[1]} patches chosen; the first: {index[0, :6].tolist()}")


def patches(picture: Tensor) -> Tensor:
    """Cut a picture, [3, H, W], into tokens: [1, patches, 3 * PATCH * PATCH]."""
    grid = picture.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)  # [3, h, w, PATCH, PATCH]
    return grid.permute(1, 2, 0, 3, 4).reshape(1, -1, 3 * PATCH * PATCH)


if __name__ == "__main__":
    main()
