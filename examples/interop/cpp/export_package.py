"""Compile a projector that prunes its tokens into a package that a C++ program runs.

Run: python examples/interop/cpp/export_package.py pruned_projector.pt2
Prints what the model answers; run_package.cpp prints the same of the package.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

import stc_kernels  # noqa: F401  (registers torch.ops.stc_kernels)

TOKENS, WIDTH, KEPT = 49, 32, 8


class PrunedProjector(nn.Module):
    """Projects a tower's features and keeps the most novel tokens of each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.stc_kernels.prune_tokens(self.linear(features), KEPT)


@torch.no_grad()
def main(path: str) -> None:
    torch.manual_seed(0)
    model = PrunedProjector().eval()
    frames = torch.export.Dim("frames", min=1, max=1024)
    program = torch.export.export(
        model, (features_of(2),), dynamic_shapes={"features": {0: frames}}
    )
    torch._inductor.aoti_compile_and_package(program, package_path=path)
    kept, index = model(features_of(4))
    print(f"kept {list(kept.shape)}")
    for row in index.tolist():
        print(*row)


def features_of(frames: int) -> Tensor:
    """Return the features that run_package.cpp makes too, [F, T, C]."""
    place = torch.arange(frames * TOKENS * WIDTH, dtype=torch.float32)
    return (place * place * 1e-3).cos().view(frames, TOKENS, WIDTH)


if __name__ == "__main__":
    main(*sys.argv[1:])
