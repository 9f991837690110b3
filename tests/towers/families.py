"""A small tower of each family, how it is called, and where the parts of its layers are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from towers import shapes

WIDTH, DEPTH, HEADS, IMAGE, PATCH = 32, 3, 4, 40, 8
GRIDS = {"door": (6, 4), "yard": (4, 6), "hall": (6, 6)}
"""Rows and columns of each stream's frames where frames are packed: two of one number of tokens."""

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Parts:
    """A layer's parts, each a function of tokens [n, C]."""

    norm1: Function
    query: Function
    key: Function
    value: Function
    output: Function
    norm2: Function
    mlp: Function
    heads: int = HEADS
    query_norm: Function = field(default=lambda tokens: tokens)
    key_norm: Function = field(default=lambda tokens: tokens)


@dataclass(frozen=True)
class Family:
    """A family of towers in the tests.

    Attributes:
        name: of the tests' ids.
        reads: the name of the family that reads it.
        make: a tower of this shape, told nothing.
        layers: where its layers are, as a dotted path; the first that leads somewhere.
        parts: finds a layer's parts.
        prefix: tokens before the patches.
        packed: whether frames are called as one sequence with grids.
        call: what to call with a batch of frames, and all that comes back.
        key: path of the key projection in a layer; the first that leads somewhere.
    """

    name: str
    reads: str
    make: Callable[[], nn.Module]
    layers: tuple[str, ...]
    parts: Callable[[nn.Module], Parts]
    key: tuple[str, ...]
    prefix: int = 0
    packed: bool = False
    call: Callable[[nn.Module, Tensor], Any] | None = None

    def tower(self, seed: int) -> nn.Module:
        """Return a tower all of whose weights are random."""
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            tower = self.make().eval()
        with torch.no_grad():
            for parameter in tower.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return tower

    def frames(self, streams: Sequence[str], seed: int) -> list[Frame]:
        """Return a frame for each name: a stream's own scene, some of which moved."""
        generator = torch.Generator().manual_seed(seed)
        scenes: dict[str, Tensor] = {}
        frames = []
        for stream in streams:
            grid = GRIDS.get(stream, GRIDS["door"])
            if stream not in scenes:
                shape = (grid[0] * grid[1], 96) if self.packed else (3, IMAGE, IMAGE)
                scenes[stream] = torch.randn(shape, generator=generator)
            frame = scenes[stream] + 0.05 * torch.randn(scenes[stream].shape, generator=generator)
            if self.packed:
                moved = torch.randperm(len(frame), generator=generator)[: len(frame) // 4]
                frame[moved] = torch.randn(len(moved), 96, generator=generator)
            else:
                row, column = torch.randint(0, IMAGE - 16, (2,), generator=generator).tolist()
                part = frame[:, row : row + 16, column : column + 16]
                part.copy_(torch.randn(3, 16, 16, generator=generator))
            frames.append(Frame(frame, grid))
        return frames

    def run(
        self, tower: nn.Module, frames: Sequence[Frame], states: bool = True, **settings: Any
    ) -> dict[str, Tensor]:
        """Call a tower with a batch; return all tensors that come back, by name.

        Args:
            tower: a tower of the family.
            frames: the batch.
            states: whether to ask a tower of transformers for the output of each layer.
            settings: more to call it with.
        """
        own = next(tower.parameters())
        pixels = [frame.pixels.to(own.device, own.dtype) for frame in frames]
        with torch.no_grad():
            if self.packed:
                grids = torch.tensor([[1, *frame.grid] for frame in frames])
                output = tower(torch.cat(pixels), grid_thw=grids, **settings)
            elif self.call is not None:
                output = self.call(tower, torch.stack(pixels), **settings)
            else:
                output = tower(torch.stack(pixels), output_hidden_states=states, **settings)
        return tensors(output)

    def layers_of(self, tower: nn.Module) -> list[nn.Module]:
        """Return a tower's layers."""
        return list(at(tower, *self.layers))


@dataclass(frozen=True)
class Frame:
    """A picture [3, H, W], or packed patches [T, C·t·h·w] with their rows and columns."""

    pixels: Tensor
    grid: tuple[int, int]


def tensors(output: Any, name: str = "output") -> dict[str, Tensor]:
    """Return all tensors in what a tower gave back, by where they were."""
    if isinstance(output, Tensor):
        return {name: output}
    if hasattr(output, "items"):
        pairs = list(output.items())
    elif isinstance(output, tuple | list):
        pairs = list(enumerate(output))
    else:
        pairs = []
    found: dict[str, Tensor] = {}
    for key, value in pairs:
        found |= tensors(value, f"{name}.{key}")
    return found


def joined(outputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Lay what several batches gave one after the other."""
    return {name: torch.cat([output[name] for output in outputs]) for name in outputs[0]}


def at(module: Any, *paths: str) -> Any:
    """Return what the first of several dotted paths leads to."""
    for path in paths:
        found = module
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is not None:
            return found
    raise AttributeError(f"{type(module).__name__} has none of {paths}")


def transformer(family: str, name: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    """Return a maker of a tower of transformers, which skips where there is no such class."""

    def make() -> nn.Module:
        where = f"transformers.models.{family}.modeling_{family}"
        if find_spec(where.rpartition(".")[0]) is None:
            pytest.skip(f"transformers {transformers.__version__} has no {family}")
        module = import_module(where)
        return getattr(module, name)(getattr(module, config)(**settings))

    return make


def part_of(linear: nn.Linear, number: int) -> Function:
    """Return the query (0), key (1) or value (2) of a fused projection."""
    rows = slice(number * WIDTH, (number + 1) * WIDTH)
    return lambda tokens: functional.linear(tokens, linear.weight[rows], linear.bias[rows])


def by_head(norm: Function) -> Function:
    return lambda tokens: torch.cat([norm(head) for head in tokens.split(WIDTH // HEADS, -1)], -1)


def siglip_parts(layer: nn.Module) -> Parts:
    own = layer.self_attn
    return Parts(
        layer.layer_norm1,
        own.q_proj,
        own.k_proj,
        own.v_proj,
        own.out_proj,
        layer.layer_norm2,
        layer.mlp,
    )


def dino_parts(layer: nn.Module) -> Parts:
    own = layer.attention
    output = at(own, "o_proj", "output.dense")
    return Parts(
        layer.norm1,
        at(own, "q_proj", "attention.query"),
        at(own, "k_proj", "attention.key"),
        at(own, "v_proj", "attention.value"),
        lambda tokens: output(tokens) * layer.layer_scale1.lambda1,
        layer.norm2,
        lambda tokens: layer.mlp(tokens) * layer.layer_scale2.lambda1,
    )


def internvit_parts(layer: nn.Module) -> Parts:
    own = layer.attention
    return Parts(
        layer.layernorm_before,
        own.q_proj,
        own.k_proj,
        own.v_proj,
        lambda tokens: own.projection_layer(tokens) * layer.lambda_1,
        layer.layernorm_after,
        lambda tokens: layer.mlp(tokens) * layer.lambda_2,
        query_norm=own.q_norm,
        key_norm=own.k_norm,
    )


def qwen_parts(layer: nn.Module) -> Parts:
    own = layer.attn
    return Parts(
        layer.norm1,
        *(part_of(own.qkv, number) for number in range(3)),
        own.proj,
        layer.norm2,
        layer.mlp,
    )


def timm_parts(layer: nn.Module) -> Parts:
    own = layer.attn
    return Parts(
        layer.norm1,
        *(part_of(own.qkv, number) for number in range(3)),
        lambda tokens: own.proj(own.norm(tokens)) * layer.ls1.gamma,
        layer.norm2,
        lambda tokens: layer.mlp(tokens) * layer.ls2.gamma,
        query_norm=by_head(own.q_norm),
        key_norm=by_head(own.k_norm),
    )


def timm_call(tower: nn.Module, pixels: Tensor) -> Any:
    return tower.forward_intermediates(pixels)


def collects_by_swapping() -> bool:
    """Tell whether transformers swaps the layers' methods for a moment to collect their output.

    Early versions 5 do: not for threads, and an error on the way leaves what it swapped in.
    """
    return find_spec("transformers.utils.output_capturing") is None


def plain_call(tower: nn.Module, pixels: Tensor) -> Any:
    return tower(pixels)


def timm_or_skip() -> Any:
    """Return timm; skip where it is not installed, or not the torchvision that it needs."""
    reason = "timm is not installed, or not the torchvision it needs"
    return pytest.importorskip("timm", reason=reason)


def timm_tower() -> nn.Module:
    return timm_or_skip().models.vision_transformer.VisionTransformer(
        img_size=IMAGE,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_ratio=1.5,
        num_classes=7,
        reg_tokens=2,
        qk_norm=True,
        scale_attn_norm=True,
        init_values=0.5,
    )


SHAPE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "image_size": IMAGE,
    "patch_size": PATCH,
}
WIDE = {**SHAPE, "intermediate_size": 48}
QWEN = {
    "depth": DEPTH,
    "num_heads": HEADS,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
}
OWN = {"dim": WIDTH, "depth": DEPTH, "heads": HEADS, "image": IMAGE, "patch": PATCH}

_SELF = ("self_attn.k_proj",)
_DINO = ("attention.k_proj", "attention.attention.key")

FAMILIES = (
    Family(
        "SigLIP",
        "SigLIP",
        transformer("siglip", "SiglipVisionModel", "SiglipVisionConfig", **WIDE),
        ("encoder.layers", "vision_model.encoder.layers"),
        siglip_parts,
        _SELF,
    ),
    Family(
        "CLIP",
        "CLIP",
        transformer("clip", "CLIPVisionModel", "CLIPVisionConfig", **WIDE),
        ("encoder.layers", "vision_model.encoder.layers"),
        siglip_parts,
        _SELF,
        prefix=1,
    ),
    Family(
        "DINOv2",
        "DINOv2",
        transformer("dinov2", "Dinov2Model", "Dinov2Config", **SHAPE, mlp_ratio=2),
        ("encoder.layer",),
        dino_parts,
        _DINO,
        prefix=1,
    ),
    Family(
        "DINOv2 registers",
        "DINOv2",
        transformer(
            "dinov2_with_registers",
            "Dinov2WithRegistersModel",
            "Dinov2WithRegistersConfig",
            **SHAPE,
            mlp_ratio=2,
            num_register_tokens=4,
            use_swiglu_ffn=True,
        ),
        ("encoder.layer",),
        dino_parts,
        _DINO,
        prefix=5,
    ),
    Family(
        "DINOv3",
        "DINOv3",
        transformer(
            "dinov3_vit", "DINOv3ViTModel", "DINOv3ViTConfig", **WIDE, num_register_tokens=2
        ),
        ("model.layer", "layer"),
        dino_parts,
        _DINO,
        prefix=3,
    ),
    Family(
        "InternViT",
        "InternViT",
        transformer(
            "internvl",
            "InternVLVisionModel",
            "InternVLVisionConfig",
            **(WIDE | {"image_size": [IMAGE, IMAGE], "patch_size": [PATCH, PATCH]}),
            use_qk_norm=True,
            norm_type="rms_norm",
        ),
        ("encoder.layer",),
        internvit_parts,
        _DINO,
        prefix=1,
    ),
    Family(
        "Qwen2-VL",
        "Qwen-VL",
        transformer(
            "qwen2_vl",
            "Qwen2VisionTransformerPretrainedModel",
            "Qwen2VLVisionConfig",
            **QWEN,
            embed_dim=WIDTH,
            hidden_size=40,
            mlp_ratio=2,
        ),
        ("blocks",),
        qwen_parts,
        ("attn.qkv",),
        packed=True,
    ),
    Family(
        "Qwen2.5-VL",
        "Qwen-VL",
        transformer(
            "qwen2_5_vl",
            "Qwen2_5_VisionTransformerPretrainedModel",
            "Qwen2_5_VLVisionConfig",
            **QWEN,
            hidden_size=WIDTH,
            out_hidden_size=40,
            intermediate_size=48,
            window_size=16,
            fullatt_block_indexes=[1],
        ),
        ("blocks",),
        qwen_parts,
        ("attn.qkv",),
        packed=True,
    ),
    Family(
        "Qwen3-VL",
        "Qwen-VL",
        transformer(
            "qwen3_vl",
            "Qwen3VLVisionModel",
            "Qwen3VLVisionConfig",
            **QWEN,
            hidden_size=WIDTH,
            out_hidden_size=40,
            intermediate_size=48,
            num_position_embeddings=25,
            deepstack_visual_indexes=[0, 1],
        ),
        ("blocks",),
        qwen_parts,
        ("attn.qkv",),
        packed=True,
    ),
    Family(
        "timm",
        "timm ViT",
        timm_tower,
        ("blocks",),
        timm_parts,
        ("attn.qkv",),
        prefix=3,
        call=timm_call,
    ),
    Family(
        "timm's shape",
        "timm ViT",
        lambda: shapes.TimmTower(**OWN),
        ("blocks",),
        timm_parts,
        ("attn.qkv",),
        prefix=3,
        call=timm_call,
    ),
    Family(
        "LLaVA's SigLIP",
        "SigLIP",
        lambda: shapes.LlavaSiglipTower(**OWN),
        ("vision_tower.vision_model.encoder.layers",),
        siglip_parts,
        _SELF,
        call=plain_call,
    ),
    Family(
        "LLaVA's CLIP",
        "CLIP",
        lambda: shapes.LlavaClipTower(
            transformer("clip", "CLIPVisionModel", "CLIPVisionConfig", **WIDE)()
        ),
        ("vision_tower.encoder.layers", "vision_tower.vision_model.encoder.layers"),
        siglip_parts,
        _SELF,
        prefix=1,
        call=plain_call,
    ),
)
