"""Whole models: the tower is found in them, and they run through it as before."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from towers.families import QWEN, WIDE, tensors

from stc_stream import Cacher, CacherConfig, attach_cacher

TEXT = {
    "vocab_size": 64,
    "hidden_size": 40,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
QWEN2 = {"model_type": "qwen2", **TEXT}
MROPE = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [1, 2, 2],
    }
}
IMAGE_TOKEN = 60
GRIDS = [[3, 6, 4]]


@dataclass(frozen=True)
class Case:
    """A model, three frames as it takes them, and the image tokens that they fill."""

    name: str
    module: str
    tower: str
    text: dict[str, Any]
    vision: dict[str, Any]
    frames: dict[str, Any]
    tokens: int
    settings: dict[str, Any]

    def make(self) -> nn.Module:
        """Return the model, with random weights."""
        own = import_module(f"transformers.models.{self.module}")
        config = getattr(own, f"{self.name}Config")(
            text_config=self.text, vision_config=self.vision, **self.settings
        )
        return getattr(own, f"{self.name}ForConditionalGeneration")(config).eval()

    def features(self, model: nn.Module) -> dict[str, Tensor]:
        """Return what the model's own method makes of the frames."""
        with torch.no_grad():
            if "pixel_values_videos" in self.frames:
                return tensors(model.get_video_features(**as_video(model, self.frames)))
            return tensors(model.get_image_features(**self.frames))

    def streams(self, cacher: Cacher) -> AbstractContextManager[None]:
        """Name the frames' stream, where the model would take them for pictures."""
        if "pixel_values_videos" in self.frames:
            return nullcontext()
        return cacher.streams(["clip"] * 3)

    def logits(self, model: nn.Module, frames: bool = True) -> Tensor:
        """Return the logits of a text, with the frames in it or without."""
        words = [1, 5, *[IMAGE_TOKEN] * (self.tokens if frames else 0), 7, 9]
        more: dict[str, Any] = dict(self.frames) if frames else {}
        if "video_grid_thw" in self.frames:
            more["position_ids"] = torch.arange(len(words)).expand(3, 1, -1)
        with torch.no_grad():
            return model(input_ids=torch.tensor([words]), **more).logits


def as_video(model: nn.Module, video: dict[str, Any]) -> dict[str, Any]:
    """Return a video as the model's own method takes it, which differs in transformers 5.0."""
    known = inspect.signature(model.get_video_features).parameters
    return {name if name in known else "pixel_values": value for name, value in video.items()}


def pixels(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def qwen(name: str, module: str, **vision: Any) -> Case:
    frames = {"pixel_values_videos": pixels(72, 96), "video_grid_thw": torch.tensor(GRIDS)}
    settings = {"image_token_id": 61, "video_token_id": IMAGE_TOKEN, "vision_start_token_id": 62}
    return Case(name, module, "model.visual", TEXT | MROPE, QWEN | vision, frames, 18, settings)


def llava(vision: str) -> Case:
    return Case(
        "Llava",
        "llava",
        "model.vision_tower",
        QWEN2,
        {"model_type": vision, **WIDE},
        {"pixel_values": pixels(3, 3, 40, 40)},
        75,
        {"image_token_index": IMAGE_TOKEN, "vision_feature_layer": -2}
        | {"vision_feature_select_strategy": "default" if "clip" in vision else "full"},
    )


CASES = {
    "Qwen2-VL": qwen("Qwen2VL", "qwen2_vl", embed_dim=32, hidden_size=40, mlp_ratio=2),
    "Qwen2.5-VL": qwen(
        "Qwen2_5_VL",
        "qwen2_5_vl",
        hidden_size=32,
        out_hidden_size=40,
        intermediate_size=48,
        window_size=16,
        fullatt_block_indexes=[1],
    ),
    "Qwen3-VL": qwen(
        "Qwen3VL",
        "qwen3_vl",
        hidden_size=32,
        out_hidden_size=40,
        intermediate_size=48,
        num_position_embeddings=25,
        deepstack_visual_indexes=[0],
    ),
    "LLaVA with CLIP": llava("clip_vision_model"),
    "LLaVA with SigLIP": llava("siglip_vision_model"),
    "LLaVA-OneVision": Case(
        "LlavaOnevision",
        "llava_onevision",
        "model.vision_tower",
        QWEN2,
        {"model_type": "siglip_vision_model", **WIDE},
        {"pixel_values_videos": pixels(1, 3, 3, 40, 40)},
        28,
        {"video_token_index": IMAGE_TOKEN, "image_token_index": 61, "vision_feature_layer": -1}
        | {"image_grid_pinpoints": [[40, 40]], "vision_feature_select_strategy": "full"},
    ),
    "InternVL": Case(
        "InternVL",
        "internvl",
        "model.vision_tower",
        QWEN2,
        {**WIDE, "image_size": [64, 64], "patch_size": [8, 8]},
        {"pixel_values": pixels(3, 3, 64, 64)},
        48,
        {"image_token_id": IMAGE_TOKEN, "image_seq_length": 16, "downsample_ratio": 0.5},
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    """Return one case after the other."""
    return request.param


@pytest.fixture
def model(case, seed):
    """Return a whole model with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return case.make()


def test_features_of_a_whole_model(case, model):
    dense = case.features(model)
    with attach_cacher(model, CacherConfig.paper(update_ratio=1.0)) as cacher:
        assert cacher.tower.path.removesuffix(".vision_model") == case.tower
        with case.streams(cacher):
            ours = case.features(model)
        assert (cacher.stats.frames, cacher.stats.refreshes) == (3, 1)
    assert ours.keys() == dense.keys()
    for name, tensor in dense.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    assert all(
        torch.equal(*pair)
        for pair in zip(case.features(model).values(), dense.values(), strict=True)
    )


def test_a_text_with_frames_in_it(case, model):
    dense, words = case.logits(model), case.logits(model, frames=False)
    with (
        attach_cacher(model, CacherConfig.paper(update_ratio=1.0)) as cacher,
        case.streams(cacher),
    ):
        torch.testing.assert_close(case.logits(model), dense, rtol=1e-5, atol=1e-5)
        assert torch.equal(case.logits(model, frames=False), words)
        assert cacher.stats.frames == 3
    with (
        attach_cacher(model, CacherConfig.paper(update_ratio=0.25)) as cacher,
        case.streams(cacher),
    ):
        assert not torch.equal(case.logits(model), dense)
        assert cacher.stats.tokens_reused > 0
