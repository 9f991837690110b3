"""Finding a tower in a model, and saying why there is none."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    Dinov2Config,
    Dinov2Model,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    XCLIPVisionConfig,
    XCLIPVisionModel,
)

from stc_stream.towers import read_tower

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.fixture
def tower():
    return SiglipVisionModel(SiglipVisionConfig(**SHAPE, image_size=48, patch_size=8))


@pytest.fixture
def inner(tower):
    """Return what holds the embeddings and the encoder: the tower itself, or in it."""
    return getattr(tower, "vision_model", tower)


def test_reads_the_parts_of_each_layer(inner):
    read = read_tower(inner)
    assert (read.family, read.path, read.width, len(read.layers)) == ("SigLIP", "", 32, 2)
    assert read.encoder is inner.encoder
    for parts, layer in zip(read.layers, inner.encoder.layers, strict=True):
        attention = layer.self_attn
        assert parts.module is layer
        assert (parts.norm1, parts.norm2, parts.mlp) == (
            layer.layer_norm1,
            layer.layer_norm2,
            layer.mlp,
        )
        assert (parts.query.module, parts.key.module) == (attention.q_proj, attention.k_proj)
        assert (parts.value.module, parts.output) == (attention.v_proj, attention.out_proj)
        assert (parts.heads, parts.scale) == (4, 8**-0.5)


def test_finds_the_tower_in_a_model(inner):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.projector = nn.Linear(32, 64)
            self.vision_tower = nn.ModuleDict({"vision_model": inner})

    assert read_tower(Wrapper()).path == "vision_tower.vision_model"


def test_several_towers_are_refused(inner):
    other = copy.deepcopy(inner)
    with pytest.raises(ValueError, match=r"2 vision towers \(left, right\)"):
        read_tower(nn.ModuleDict({"left": inner, "right": other}))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: SiglipTextModel(SiglipTextConfig(**SHAPE, vocab_size=50)), "no image patches"),
        (
            lambda: Siglip2VisionModel(Siglip2VisionConfig(**SHAPE, patch_size=8)),
            "NaFlex",
        ),
        (
            lambda: XCLIPVisionModel(XCLIPVisionConfig(**SHAPE, num_frames=2)),
            "weights that are not read: message_fc in layer 0",
        ),
        (
            lambda: Blip2VisionModel(Blip2VisionConfig(**SHAPE)),
            "weights that are not read: qkv in layer 0",
        ),
        (
            lambda: BertModel(BertConfig(**SHAPE, vocab_size=50)),
            "no vision encoder was found",
        ),
        (lambda: nn.Linear(3, 3), "no vision encoder was found"),
    ],
)
def test_what_cannot_be_read_says_why(model, reason):
    with pytest.raises(TypeError, match=rf"{reason}.*Families that can be read: SigLIP"):
        read_tower(model())


def test_a_missing_part_is_named(tower, inner):
    del inner.encoder.layers[1].mlp
    with pytest.raises(TypeError, match="has no mlp in layer 1"):
        read_tower(tower)


def test_projections_must_be_plain(tower, inner):
    inner.encoder.layers[0].self_attn.v_proj = nn.Identity()
    with pytest.raises(TypeError, match=r"no torch\.nn\.Linear as self_attn\.v_proj in layer 0"):
        read_tower(tower)


def test_a_tower_without_layers(tower, inner):
    inner.encoder.layers = nn.ModuleList()
    with pytest.raises(TypeError, match="has no layers"):
        read_tower(tower)


def test_what_is_no_module():
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module.* but is a Tensor"):
        read_tower(torch.zeros(3))


@pytest.mark.parametrize("name", ["cls_token", "patch_embeddings.projection"])
def test_a_missing_part_of_the_embeddings_is_named(name):
    tower = Dinov2Model(Dinov2Config(**SHAPE, image_size=48, patch_size=8))
    parent, _, last = f"embeddings.{name}".rpartition(".")
    setattr(tower.get_submodule(parent), last, None)
    with pytest.raises(TypeError, match=rf"has no .*embeddings\.{name}"):
        read_tower(tower)
