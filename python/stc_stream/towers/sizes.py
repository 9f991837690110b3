"""The field's vision towers at their real sizes, with random weights: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

SEED = 0


@dataclass(frozen=True)
class Packing:
    """How a tower wants its frames: patches one after the other, told apart by `grid_thw`.

    Attributes:
        temporal: pictures that a patch spans; a frame alone is repeated.
        merge: side of the squares of patches that lie next to each other.
    """

    temporal: int
    merge: int


@dataclass(frozen=True)
class TowerSizes:
    """The sizes of a vision tower.

    Attributes:
        title: the model whose sizes these are.
        make: builds the tower with so many layers; its weights are drawn from torch's generator.
        image_size: side of its square input, in pixels.
        patch: side of a patch, in pixels.
        width: channels of a token (C).
        layers: layers of the whole tower.
        packing: how frames are packed; None: as a batch of pictures.
    """

    title: str
    make: Callable[[int], nn.Module]
    image_size: int
    patch: int
    width: int
    layers: int
    packing: Packing | None = None

    def build(self, layers: int | None = None) -> nn.Module:
        """Build the tower's first layers with random weights, the same each time.

        It ends where video models take its features: no pooling head, no patch merger.

        Args:
            layers: how many; None: all.

        Raises:
            ValueError: more layers than the tower has, or less than one.
        """
        count = self.layers if layers is None else layers
        if not 1 <= count <= self.layers:
            raise ValueError(f"layers must be 1 to {self.layers} for {self.title}, but is {count}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return self.make(count).eval().requires_grad_(False)


def _siglip(**sizes: Any) -> Callable[[int], nn.Module]:
    def make(layers: int) -> nn.Module:
        config = SiglipVisionConfig(num_hidden_layers=layers, vision_use_head=False, **sizes)
        return SiglipVisionModel(config)

    return make


def _clip(**sizes: Any) -> Callable[[int], nn.Module]:
    def make(layers: int) -> nn.Module:
        return CLIPVisionModel(CLIPVisionConfig(num_hidden_layers=layers, **sizes))

    return make


def _qwen2_vl(**sizes: Any) -> Callable[[int], nn.Module]:
    def make(layers: int) -> nn.Module:
        config = Qwen2VLVisionConfig(depth=layers, **sizes)
        module: nn.Module = Qwen2VisionTransformerPretrainedModel(config)
        module.merger = nn.Identity()
        return module

    return make


MODEL_SIZES: Mapping[str, TowerSizes] = {
    "siglip-so400m": TowerSizes(
        "SigLIP-so400m-patch14-384",
        _siglip(
            hidden_size=1152,
            intermediate_size=4304,
            num_attention_heads=16,
            image_size=384,
            patch_size=14,
        ),
        image_size=384,
        patch=14,
        width=1152,
        layers=27,
    ),
    "siglip-base": TowerSizes(
        "SigLIP-base-patch16-384",
        _siglip(
            hidden_size=768,
            intermediate_size=3072,
            num_attention_heads=12,
            image_size=384,
            patch_size=16,
        ),
        image_size=384,
        patch=16,
        width=768,
        layers=12,
    ),
    "clip-l": TowerSizes(
        "CLIP-ViT-L-patch14-336",
        _clip(
            hidden_size=1024,
            intermediate_size=4096,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
        ),
        image_size=336,
        patch=14,
        width=1024,
        layers=24,
    ),
    "qwen2-vl": TowerSizes(
        "Qwen2-VL at 448 × 448",
        _qwen2_vl(embed_dim=1280, mlp_ratio=4, num_heads=16, patch_size=14),
        image_size=448,
        patch=14,
        width=1280,
        layers=32,
        packing=Packing(temporal=2, merge=2),
    ),
}
"""By the names that `stc bench --tower` takes."""
