"""Small SigLIP towers with random weights, and clips in which some things move."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

MakeTower = Callable[..., SiglipVisionModel]
MakeClip = Callable[..., Tensor]


@pytest.fixture
def make_tower(seed: int) -> MakeTower:
    """Return a maker of towers: 32 wide, 3 layers, 36 tokens; every weight and bias random."""

    def make(seed: int = seed, **settings: object) -> SiglipVisionModel:
        shape = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 48,
            "patch_size": 8,
        }
        generator = torch.Generator().manual_seed(seed)
        tower = SiglipVisionModel(SiglipVisionConfig(**{**shape, **settings})).eval()
        with torch.no_grad():
            for parameter in tower.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return tower

    return make


@pytest.fixture
def make_clip(seed: int) -> MakeClip:
    """Return a maker of clips: [frames, 3, size, size], a still scene with a part that changes."""

    def make(frames: int, seed: int = seed, size: int = 48) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        scene = torch.randn(3, size, size, generator=generator)
        clip = scene + 0.05 * torch.randn(frames, 3, size, size, generator=generator)
        for frame in clip:
            row, column = torch.randint(0, size - 16, (2,), generator=generator).tolist()
            frame[:, row : row + 16, column : column + 16] = torch.randn(
                3, 16, 16, generator=generator
            )
        return clip

    return make
