"""Give a model's pruning layer our kernel with Hugging Face's ``kernels``, changing nothing in it.

Run: python examples/interop/kernels_layer.py
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from kernels import (
    LocalLayerRepository,
    Mode,
    get_local_kernel,
    kernelize,
    use_kernel_forward_from_hub,
    use_kernel_mapping,
)
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity


@use_kernel_forward_from_hub("PruneTokens")
class NovelTokens(nn.Module):
    """Keeps the k tokens of each frame that are least like their frame and the past."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k, self.strategy, self.alpha = k, "dual_anchor", 0.5

    def forward(self, tokens: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        novelty = 1 - cosine_similarity(tokens, tokens.mean(1, keepdim=True), dim=-1)
        if past is not None:
            seen = cosine_similarity(tokens, past, dim=-1)
            novelty = self.alpha * (1 - seen) + (1 - self.alpha) * novelty
        index = novelty.topk(self.k, dim=1).indices.sort(dim=1).values
        return tokens.take_along_dim(index[:, :, None], dim=1), index


@torch.no_grad()
def main() -> None:
    spec = find_spec("stc_kernels")
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).parent  # the installed package is the kernel's folder
    print(f"loaded {get_local_kernel(package).__name__}")

    torch.manual_seed(0)
    model = nn.ModuleDict({"projector": nn.Linear(96, 128), "prune": NovelTokens(k=16)}).eval()
    tokens, past = model["projector"](torch.randn(4, 49, 96)), torch.randn(128)
    kept, index = model["prune"](tokens, past)

    layer = LocalLayerRepository(package, layer_name="PruneTokens")
    with use_kernel_mapping({"PruneTokens": {"cpu": layer, "cuda": layer}}):
        model = kernelize(model, mode=Mode.INFERENCE | Mode.TORCH_COMPILE)
    same_kept, same_index = model["prune"](tokens, past)
    print(f"forward is now from {model['prune'].forward.__func__.__module__}")
    print(f"the same tokens: {torch.equal(index, same_index) and torch.equal(kept, same_kept)}")


if __name__ == "__main__":
    main()
