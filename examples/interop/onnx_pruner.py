"""Export a projector that prunes its tokens to ONNX, and run it without torch's ops or ours.

Run: python examples/interop/onnx_pruner.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

import stc_kernels  # noqa: F401  (registers torch.ops.stc_kernels)
from stc_kernels.interop.onnx import translation_table


class PrunedProjector(nn.Module):
    """Projects a tower's features and keeps the 64 most novel tokens of each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 256)

    def forward(self, features: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.linear(features)  # [F, T, D]
        scores = torch.ops.stc_kernels.anchor_scores(tokens, past)  # [F, T]
        return torch.ops.stc_kernels.topk_gather(tokens, scores, 64)


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    model = PrunedProjector().eval()
    program = torch.onnx.export(
        model,
        (torch.randn(2, 196, 192), torch.randn(256)),
        dynamo=True,
        custom_translation_table=translation_table(),
        dynamic_shapes={"features": {0: torch.export.Dim("frames")}, "past": None},
        verbose=False,
    )
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "pruned_projector.onnx")
        program.save(path)
        session = onnxruntime.InferenceSession(path)
    for frames in (1, 8):
        features, past = torch.randn(frames, 196, 192), torch.randn(256)
        inputs = {"features": features.numpy(), "past": past.numpy()}
        kept, index = session.run(None, inputs)
        same = (torch.from_numpy(index) == model(features, past)[1]).float().mean().item()
        print(f"{frames} frames: kept {kept.shape}, {same:.0%} of the indices as in torch")


if __name__ == "__main__":
    main()
