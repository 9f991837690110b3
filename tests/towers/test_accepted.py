"""Every class of transformers and timm that is accepted: built small, all recomputed is dense.

Found by building all their vision classes; a class may join the list, none may leave it. Those that
a family names are held to the algorithm besides, in the other files.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
import transformers
from towers.families import DEPTH, HEADS, IMAGE, PATCH, QWEN, WIDE, WIDTH, tensors, timm_or_skip

from stc_stream import CacherConfig, attach_cacher

PICTURES = """
altclip AltCLIPVisionModel
chinese_clip ChineseCLIPVisionModel
clip CLIPVisionModel
clip CLIPVisionModelWithProjection
clipseg CLIPSegVisionModel
dinov2 Dinov2Backbone
dinov2 Dinov2ForImageClassification
dinov2 Dinov2Model
dinov2_with_registers Dinov2WithRegistersBackbone
dinov2_with_registers Dinov2WithRegistersForImageClassification
dinov2_with_registers Dinov2WithRegistersModel
dinov3_vit DINOv3ViTBackbone
dinov3_vit DINOv3ViTModel
git GitVisionModel
idefics2 Idefics2VisionTransformer
idefics3 Idefics3VisionTransformer
internvl InternVLVisionModel
kosmos2 Kosmos2VisionModel
kosmos2 Kosmos2VisionTransformer
metaclip_2 MetaClip2VisionModel
metaclip_2 MetaClip2VisionModelWithProjection
mlcd MLCDVisionModel
owlv2 Owlv2VisionModel
owlv2 Owlv2VisionTransformer
owlvit OwlViTVisionModel
owlvit OwlViTVisionTransformer
siglip SiglipVisionModel
smolvlm SmolVLMVisionTransformer
tipsv2 Tipsv2VisionBackbone
tipsv2 Tipsv2VisionModel
"""

PACKED = """
cohere_compass CohereCompassVisionModel
ernie4_5_vl_moe Ernie4_5_VLMoeVisionTransformerPretrainedModel
ernie4_5_vl_moe Ernie4_5_VL_MoeVisionTransformerPretrainedModel
glm4v Glm4vVisionModel
glm4v_moe Glm4vMoeVisionModel
glm_image GlmImageVisionModel
qwen2_5_vl Qwen2_5_VisionTransformerPretrainedModel
qwen2_vl Qwen2VisionTransformerPretrainedModel
qwen3_5 Qwen3_5VisionModel
qwen3_5_moe Qwen3_5MoeVisionModel
qwen3_omni_moe Qwen3OmniMoeVisionEncoder
qwen3_vl Qwen3VLVisionModel
qwen3_vl_moe Qwen3VLMoeVisionModel
qwen4_exp Qwen4ExpVisionModel
"""

# One name for each way in which timm's accepted models differ: norms, MLP, layer scale, tokens
# before the patches, pooling.
TIMM = """
aimv2_1b_patch14_224
beit3_base_patch16_224
deit3_base_patch16_224
deit_base_distilled_patch16_224
test_vit3
test_vit4
vit_base_patch14_reg1_tipsv2
vit_base_patch14_reg4_dinov2
vit_base_patch16_clip_224
vit_base_patch16_gap_224
vit_base_patch16_radio_v3
vit_base_patch16_reg4_gap_256
vit_base_patch16_siglip_224
vit_betwixt_patch16_gap_256
vit_betwixt_patch16_reg4_gap_256
vit_giant_patch14_dinov2
vit_giant_patch14_reg1_tipsv2
vit_giant_patch14_reg4_dinov2
vit_huge_patch16_radio_v3
vit_huge_patch16_radio_v4
vit_so150m_patch16_reg4_map_256
"""

PICTURE = {**WIDE, "mlp_ratio": 2}
SETTINGS = {
    "InternVLVisionModel": {"image_size": [IMAGE, IMAGE], "patch_size": [PATCH, PATCH]},
    "Qwen2VisionTransformerPretrainedModel": {"hidden_size": 40, "embed_dim": WIDTH},
}
GRID = {
    **QWEN,
    "hidden_size": WIDTH,
    "out_hidden_size": 40,
    "intermediate_size": 48,
    "mlp_ratio": 2,
    "num_position_embeddings": 25,
    "image_size": 24,
    "window_size": 16,
    "fullatt_block_indexes": [1],
    "deepstack_visual_indexes": [0, 1],
}
ONE_PICTURE_A_FRAME = ("ernie4_5_vl_moe", "glm_image")


@pytest.mark.parametrize("line", PICTURES.split("\n")[1:-1])
def test_transformers_of_pictures(line, generator):
    tower = build(line, PICTURE, generator)
    frames = torch.randn(3, 3, IMAGE, IMAGE, generator=generator)
    check(tower, lambda: tower(frames))


@pytest.mark.parametrize("line", PACKED.split("\n")[1:-1])
def test_transformers_of_packed_frames(line, generator):
    tower = build(line, GRID, generator)
    channels = 48 if line.startswith(ONE_PICTURE_A_FRAME) else 96
    patches = torch.randn(3 * 24, channels, generator=generator)
    check(tower, lambda: tower(patches, grid_thw=torch.tensor([[1, 6, 4]] * 3)))


@pytest.mark.parametrize("name", TIMM.split())
def test_timm(name, generator):
    timm = timm_or_skip()
    small = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "num_classes": 7}
    tower = timm.create_model(name, img_size=48, patch_size=16, **small).eval()
    frames = torch.randn(3, 3, 48, 48, generator=generator)
    check(randomized(tower, generator), lambda: tower(frames))


def build(line, settings, generator):
    """Return a small tower of the class, with random weights."""
    family, name = line.split()
    where = f"transformers.models.{family}.modeling_{family}"
    if find_spec(where.rpartition(".")[0]) is None:
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    own = getattr(import_module(where), name, None)
    if own is None:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    tower = own(own.config_class(**{**settings, **SETTINGS.get(name, {})})).eval()
    return randomized(tower, generator)


def randomized(tower, generator):
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return tower


@torch.no_grad()
def check(tower, run):
    """Hold one refresh frame and two selective ones, all recomputed, to the dense tower."""
    dense = tensors(run())
    with attach_cacher(tower, CacherConfig.paper(update_ratio=1.0)) as cacher:
        ours = tensors(run())
        assert (cacher.stats.frames, cacher.stats.refreshes) == (3, 1)
    assert ours.keys() == dense.keys()
    for name, tensor in dense.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
