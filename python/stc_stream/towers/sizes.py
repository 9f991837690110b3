"""The sizes of real models, each once, and vision towers of these sizes with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn

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
        architecture: of the tower, one of `ARCHITECTURES`.
        image_size: side of its square input, in pixels.
        patch: side of a patch, in pixels.
        width: channels of a token (C).
        heads: attention heads.
        mlp: width of the MLPs' hidden layer.
        layers: layers of the whole tower.
        prefix_tokens: tokens before the patches (a class token).
        packing: how frames are packed; None: as a batch of pictures.
    """

    title: str
    architecture: str
    image_size: int
    patch: int
    width: int
    heads: int
    mlp: int
    layers: int
    prefix_tokens: int = 0
    packing: Packing | None = None

    @property
    def tokens(self) -> int:
        """Tokens a frame, prefix included (T)."""
        return (self.image_size // self.patch) ** 2 + self.prefix_tokens

    def make(self, layers: int) -> nn.Module:
        """Build the tower with `layers` layers; its weights are drawn from torch's generator."""
        return ARCHITECTURES[self.architecture](self, layers)

    def build(self, layers: int | None = None) -> nn.Module:
        """Build the tower's first layers with random weights, the same each time.

        It ends where video models take its features: no pooling head, no patch merger. Needs
        transformers; nothing is downloaded.

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


def _siglip(sizes: TowerSizes, layers: int) -> nn.Module:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.mlp,
        num_attention_heads=sizes.heads,
        num_hidden_layers=layers,
        image_size=sizes.image_size,
        patch_size=sizes.patch,
        vision_use_head=False,
    )
    return SiglipVisionModel(config)


def _clip(sizes: TowerSizes, layers: int) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.mlp,
        num_attention_heads=sizes.heads,
        num_hidden_layers=layers,
        image_size=sizes.image_size,
        patch_size=sizes.patch,
    )
    return CLIPVisionModel(config)


def _qwen2_vl(sizes: TowerSizes, layers: int) -> nn.Module:
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
    from transformers.models.qwen2_vl.modeling_qwen2_vl import (
        Qwen2VisionTransformerPretrainedModel,
    )

    config = Qwen2VLVisionConfig(
        depth=layers,
        embed_dim=sizes.width,
        mlp_ratio=sizes.mlp // sizes.width,
        num_heads=sizes.heads,
        patch_size=sizes.patch,
    )
    module: nn.Module = Qwen2VisionTransformerPretrainedModel(config)
    module.merger = nn.Identity()
    return module


ARCHITECTURES: Mapping[str, Callable[[TowerSizes, int], nn.Module]] = MappingProxyType(
    {"SigLIP": _siglip, "CLIP": _clip, "Qwen2-VL": _qwen2_vl}
)
"""What builds a tower of some sizes with a number of layers, by architecture."""

MODEL_SIZES: Mapping[str, TowerSizes] = MappingProxyType(
    {
        "siglip-so400m": TowerSizes(
            "SigLIP-so400m-patch14-384",
            "SigLIP",
            image_size=384,
            patch=14,
            width=1152,
            heads=16,
            mlp=4304,
            layers=27,
        ),
        "siglip-base": TowerSizes(
            "SigLIP-base-patch16-384",
            "SigLIP",
            image_size=384,
            patch=16,
            width=768,
            heads=12,
            mlp=3072,
            layers=12,
        ),
        "clip-l": TowerSizes(
            "CLIP-ViT-L-patch14-336",
            "CLIP",
            image_size=336,
            patch=14,
            width=1024,
            heads=16,
            mlp=4096,
            layers=24,
            prefix_tokens=1,
        ),
        "qwen2-vl": TowerSizes(
            "Qwen2-VL at 448 × 448",
            "Qwen2-VL",
            image_size=448,
            patch=14,
            width=1280,
            heads=16,
            mlp=5120,
            layers=32,
            packing=Packing(temporal=2, merge=2),
        ),
    }
)
"""Vision towers, by the names that `stc bench --tower` takes."""

LLM_WIDTHS: Mapping[str, int] = MappingProxyType(
    {"Qwen2-0.5B": 896, "Qwen2-1.5B": 1536, "Qwen2-7B": 3584}
)
"""Channels of the tokens that a Pruner sees, by language model."""
