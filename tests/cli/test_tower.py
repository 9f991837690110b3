"""Loading towers for a stream, and making their input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertConfig,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipVisionModel,
)

import stc_stream.towers.load as tower_module
from stc_stream.session.untrained import build_llava_onevision
from stc_stream.towers.load import ModelError, load_tower

from .conftest import TINY

TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def test_the_default_is_siglip_base_and_the_same_each_time() -> None:
    before = torch.random.get_rng_state()
    tower, again = load_tower(), load_tower()
    assert torch.equal(torch.random.get_rng_state(), before)
    config = tower.module.config
    assert (config.hidden_size, config.intermediate_size) == (768, 3072)
    assert (config.num_hidden_layers, config.num_attention_heads) == (12, 12)
    assert (tower.image_size, tower.patch, tower.tokens) == (384, 16, 576)
    assert not tower.pretrained
    for one, other in zip(tower.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_saved_tower_is_loaded_with_its_weights(tiny_model: Path) -> None:
    tower = load_tower(str(tiny_model), device="cpu")
    pixels = torch.randn(1, 3, 64, 64)
    expected = SiglipVisionModel.from_pretrained(tiny_model).eval()(pixels)
    assert torch.equal(tower.module(pixels).last_hidden_state, expected.last_hidden_state)
    assert tower.pretrained
    assert tower.tokens == 16
    assert tower.mean == tower.std == (0.5, 0.5, 0.5)


def test_of_a_whole_siglip_the_vision_half_is_taken(tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = SiglipModel(SiglipConfig(text_config=TEXT, vision_config=TINY)).eval()
    model.save_pretrained(tmp_path)
    SiglipImageProcessorPil(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(
        tmp_path
    )
    tower = load_tower(str(tmp_path), device="cpu")
    pixels = torch.randn(1, 3, 64, 64)
    expected = model.vision_model(pixel_values=pixels).last_hidden_state
    assert torch.equal(tower.module(pixels).last_hidden_state, expected)
    assert (tower.mean, tower.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_of_a_llava_onevision_the_tower_is_taken(tmp_path: Path) -> None:
    model, _ = build_llava_onevision()
    model.save_pretrained(tmp_path)
    tower = load_tower(str(tmp_path), device="cpu")
    pixels = torch.randn(1, 3, tower.image_size, tower.image_size)
    expected = model.model.vision_tower(pixels).last_hidden_state
    assert torch.equal(tower.module(pixels).last_hidden_state, expected)
    assert tower.pretrained


def test_input_is_what_siglips_own_preprocessing_makes(tiny_model: Path) -> None:
    tower = load_tower(str(tiny_model), device="cpu")
    image = np.random.default_rng(1).integers(0, 256, (90, 130, 3), np.uint8)
    square = tower.square(image)
    processor = SiglipImageProcessorPil(size={"height": 64, "width": 64})
    expected = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    # Two resizing codes round to neighbouring grey levels, 2/255 apart once normalised.
    torch.testing.assert_close(tower.pixel_values(square), expected, atol=2.1 / 255, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_is_what_was_asked_for(tiny_model: Path, dtype: str) -> None:
    tower = load_tower(str(tiny_model), device="cpu", dtype=dtype)
    kinds = {parameter.dtype for parameter in tower.module.parameters()}
    assert kinds == {getattr(torch, dtype)}
    assert tower.pixel_values(np.zeros((64, 64, 3), np.uint8)).dtype == tower.dtype


def test_bad_devices_and_dtypes_are_named() -> None:
    with pytest.raises(ValueError, match="^device must be auto, cpu, cuda or cuda:N, but is 'gpu'"):
        load_tower(device="gpu")
    with pytest.raises(ValueError, match="^device 'cuda:99' is not there"):
        load_tower(device="cuda:99")
    with pytest.raises(ValueError, match="^dtype must be auto, float32.*, but is 'int8'"):
        load_tower(dtype="int8")


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    SiglipTextModel(SiglipTextConfig(**TEXT)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a siglip_text_model model, which has no vision tower"):
        load_tower(str(tmp_path))


def test_another_family_is_refused(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a bert model: give a SigLIP or CLIP model"):
        load_tower(str(tmp_path))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model") as caught:
        load_tower(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_model_without_its_weights_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_model / "config.json").read_text())
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tower(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tower(str(tmp_path))


def test_a_model_with_other_weights_is_refused(tmp_path: Path) -> None:
    text = SiglipTextModel(SiglipTextConfig(**TEXT))
    text.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        config.replace("siglip_text_model", "siglip_vision_model")
    )
    with pytest.raises(ModelError, match="lacks .* of the vision tower's weights"):
        load_tower(str(tmp_path))


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Silent:
        def head(self, url: str, timeout: float) -> None:
            asked.append((url, timeout))
            raise OSError("Name or service not known\nand more")

    # transformers would ask again and again, for half a minute.
    monkeypatch.setattr(tower_module, "get_session", Silent)
    with pytest.raises(ModelError, match=r"there is no model 'nobody/nothing' to be had \(the hub"):
        load_tower("nobody/nothing")
    assert len(asked) == 1
    assert "nobody/nothing" in asked[0][0]
    assert asked[0][1] <= 10


def test_a_name_that_the_hub_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answering:
        def head(self, url: str, timeout: float) -> None:
            return None

    def unknown(name: str, **options: object) -> None:
        raise OSError("nobody/nothing is not a valid model identifier\nIf this is private…")

    monkeypatch.setattr(tower_module, "get_session", Answering)
    monkeypatch.setattr("transformers.PretrainedConfig.get_config_dict", unknown)
    with pytest.raises(ModelError, match="is not a valid model identifier") as caught:
        load_tower("nobody/nothing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["not a name!", "a/b/c/d", "", "x" * 300, "../nothing"])
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_tower(name)
    assert "\n" not in str(caught.value)
