"""timm's VisionTransformer: its ways in, and its blocks that are not plain.

On a module of its shape, which is always here, and on timm itself where it is installed.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from towers import shapes
from towers.families import FAMILIES, HEADS, IMAGE, PATCH, WIDTH, tensors, timm_or_skip

from stc_stream import CacherConfig, attach_cacher
from stc_stream.towers import read_tower

TIMM = [each for each in FAMILIES if each.reads == "timm ViT"]


@pytest.fixture(params=TIMM, ids=lambda family: family.name)
def family(request):
    """Return timm, and its shape."""
    return request.param


@pytest.fixture
def vision_transformer():
    """Return timm's module of vision transformers."""
    return timm_or_skip().models.vision_transformer


def small(make, **settings):
    shape = {"img_size": IMAGE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 2}
    return make(**{**shape, "num_heads": HEADS, "num_classes": 7, **settings}).eval()


@pytest.mark.parametrize(
    "call",
    [
        lambda tower, x: tower(x),
        lambda tower, x: tower.forward_features(x),
        lambda tower, x: tower.forward_intermediates(x, indices=[0, 2]),
    ],
    ids=["forward", "forward_features", "forward_intermediates"],
)
def test_each_way_in(family, tower, seed, call):
    x = torch.stack([frame.pixels for frame in family.frames(["door"] * 4, seed)])
    with torch.no_grad():
        dense = tensors(call(tower, x))
        with attach_cacher(tower, CacherConfig.paper(update_ratio=1.0)) as cacher:
            ours = tensors(call(tower, x))
            assert (cacher.stats.frames, cacher.stats.refreshes) == (4, 1)
        with attach_cacher(tower, CacherConfig.paper()) as cacher:
            singly = [tensors(call(tower, frame[None])) for frame in x]
            cacher.reset()
            batch = tensors(call(tower, x))
    assert len(dense) == len(ours) == len(batch) > 0
    for name, tensor in dense.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-5)
        one_by_one = torch.cat([output[name] for output in singly])
        torch.testing.assert_close(batch[name], one_by_one, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(batch[name], tensor, rtol=1e-5, atol=1e-5)


def test_a_mask_is_refused(family, tower, seed):
    x = torch.stack([frame.pixels for frame in family.frames(["door"], seed)])
    mask = torch.ones(1, 1, 28, 28, dtype=torch.bool)
    with (
        attach_cacher(tower, CacherConfig.paper()),
        pytest.raises(ValueError, match="attn_mask must be None"),
    ):
        tower.forward_features(x, attn_mask=mask)


def test_dropped_patches_in_training_are_refused(family, tower, seed):
    x = torch.stack([frame.pixels for frame in family.frames(["door"] * 2, seed)])
    tower.patch_drop = shapes.PatchDropout(0.5)
    with torch.no_grad(), attach_cacher(tower, CacherConfig.paper()):
        tower(x)
        tower.train()
        with pytest.raises(ValueError, match=r"must not drop out .* with dropout 0\.5"):
            tower(x)


def without_layer_scale(layer):
    # The shape of timm's post-norm block, which would be computed wrongly.
    del layer.ls1, layer.ls2


def with_gate(layer):
    layer.attn.gate = nn.Linear(WIDTH, WIDTH)


def with_lambdas(layer):
    layer.attn.lambda_q1 = nn.Parameter(torch.zeros(8))


def with_relative_positions(layer):
    layer.attn.rel_pos = nn.Embedding(9, HEADS)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_layer_scale, "has no ls1 in layer 0"),
        (with_gate, "has weights that are not read: gate in layer 0"),
        (with_lambdas, "has weights that are not read: lambda_q1 in layer 0"),
        (with_relative_positions, "has weights that are not read: rel_pos in layer 0"),
    ],
)
def test_other_blocks_are_refused(family, tower, change, reason):
    for layer in tower.blocks:
        change(layer)
    with pytest.raises(TypeError, match=reason):
        read_tower(tower)


@pytest.mark.parametrize(
    ("settings", "prefix"),
    [
        ({"class_token": False, "global_pool": "map"}, 0),
        ({"class_token": False, "global_pool": "avg"}, 0),
        ({"reg_tokens": 4, "no_embed_class": True, "dynamic_img_size": True}, 5),
        ({"pre_norm": True, "qkv_bias": False, "init_values": 1e-2}, 1),
        ({"mlp_layer": "SwiGLUPacked"}, 1),
        ({"norm_layer": "RmsNorm", "qk_norm": True}, 1),
    ],
)
def test_timms_own_settings(vision_transformer, seed, settings, prefix):
    for name in ("mlp_layer", "norm_layer"):
        if name in settings:
            settings = {**settings, name: getattr(vision_transformer, settings[name])}
    tower = small(vision_transformer.VisionTransformer, **settings)
    x = torch.randn(3, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        dense = tower(x)
        with attach_cacher(tower, CacherConfig.paper(update_ratio=1.0)) as cacher:
            assert cacher.tower.prefix_tokens == prefix
            torch.testing.assert_close(tower(x), dense, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"block_fn": "ResPostBlock"},
        {"block_fn": "ParallelScalingBlock"},
        {"block_fn": "ParallelThingsBlock"},
        {"attn_layer": "diff"},
    ],
    ids=str,
)
def test_timms_other_blocks_are_refused(vision_transformer, settings):
    if "block_fn" in settings:
        settings = {"block_fn": getattr(vision_transformer, settings["block_fn"])}
    with pytest.raises(TypeError, match=r"VisionTransformer has .* in layer 0"):
        read_tower(small(vision_transformer.VisionTransformer, **settings))


def test_positions_that_layers_share_are_refused(vision_transformer, generator):
    import timm

    small = {"embed_dim": WIDTH, "depth": 2, "num_heads": HEADS, "img_size": 48, "num_classes": 7}
    tower = timm.create_model("vit_srelpos_small_patch16_224", **small).eval()
    frames = torch.randn(3, 3, 48, 48, generator=generator)
    with torch.no_grad():
        dense = tower(frames)
        with (
            attach_cacher(tower),
            pytest.raises(ValueError, match="layer 0 .* called with shared_rel_pos, a Tensor"),
        ):
            tower(frames)
        assert torch.equal(tower(frames), dense)


def test_timms_other_towers_are_refused(vision_transformer):
    import timm

    for name in ("eva02_tiny_patch14_224", "beit_base_patch16_224", "vit_relpos_small_patch16_224"):
        with pytest.raises(TypeError, match="has .* in layer 0"):
            read_tower(timm.create_model(name, depth=1))
    for name in ("swin_tiny_patch4_window7_224", "resnet18"):
        with pytest.raises(TypeError, match="no vision encoder was found"):
            read_tower(timm.create_model(name))


def test_a_tower_with_two_class_tokens(vision_transformer, seed):
    from timm.models.deit import VisionTransformerDistilled

    tower = small(VisionTransformerDistilled)
    x = torch.randn(3, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        dense = tower(x)
        with attach_cacher(tower, CacherConfig.paper(update_ratio=1.0)) as cacher:
            assert cacher.tower.prefix_tokens == 2
            torch.testing.assert_close(tower(x), dense, rtol=1e-5, atol=1e-5)
