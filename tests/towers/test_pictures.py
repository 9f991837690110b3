"""Pictures that a whole model is given: tiles, several images, pictures beside a video."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from towers.families import QWEN, WIDE, tensors
from towers.test_models import MROPE, QWEN2, TEXT, as_video

from stc_stream import CacherConfig, attach_cacher

IMAGE, VIDEO = 60, 61
CONFIG = CacherConfig.paper(update_ratio=0.25, refresh_interval=100)
CLIP_VISION = {"model_type": "clip_vision_model", **WIDE}
SIGLIP_VISION = {"model_type": "siglip_vision_model", **WIDE}
TILES = {"image_grid_pinpoints": [[80, 80], [40, 80], [80, 40]]}
WORDS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 64} | {
    "num_attention_heads": 4,
    "eos_token_id": 63,
}


def noise(*shape: int) -> Tensor:
    return torch.randn(shape)


def sizes(*of: tuple[int, int]) -> Tensor:
    return torch.tensor(of)


@dataclass(frozen=True)
class Case:
    """A model, and pictures as its method for them takes them; with a video where it has one.

    Attributes:
        make: the model, told nothing.
        pictures: makes arguments of `get_image_features`.
        rows: how many rows of the tower they are, or of its grids.
        video: makes arguments of `get_video_features`; None: it has no such method.
        frames: how many frames that are.
        words: how many words of the LLM they fill.
        tower: where the tower is.
        more: arguments of a whole call besides, told its number of words.
    """

    make: Callable[[], nn.Module]
    pictures: Callable[[], dict[str, Any]]
    rows: int
    video: Callable[[], dict[str, Any]] | None = None
    frames: int = 0
    words: int = 0
    tower: str = "model.vision_tower"
    more: Callable[[int], dict[str, Any]] = field(default=lambda words: {})


def whole(name: str, module: str, vision: dict[str, Any], text: Any = QWEN2, **settings: Any):
    own = import_module(f"transformers.models.{module}")
    config = getattr(own, f"{name}Config")(text_config=text, vision_config=vision, **settings)
    kind = getattr(own, f"{name}ForConditionalGeneration", None) or getattr(own, f"{name}Model")
    return kind(config).eval()


def llava(name: str, module: str, vision: dict[str, Any] = CLIP_VISION, **settings: Any):
    return partial(
        whole,
        name,
        module,
        vision,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default" if vision is CLIP_VISION else "full",
        **settings,
    )


def qwen(name: str, module: str, **vision: Any):
    tokens = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": 62}
    return partial(whole, name, module, QWEN | vision, TEXT | MROPE, **tokens)


def packed(make: Callable[[], nn.Module]) -> Case:
    return Case(
        make,
        lambda: {"pixel_values": noise(72, 96), "image_grid_thw": sizes(*[(1, 6, 4)] * 3)},
        3,
        lambda: {"pixel_values_videos": noise(72, 96), "video_grid_thw": sizes((3, 6, 4))},
        3,
        18,
        "model.visual",
        lambda words: {"position_ids": torch.arange(words).expand(3, 1, -1)},
    )  # fmt: skip


def one_vision(pictures: Callable[[], dict[str, Any]], rows: int) -> Case:
    return Case(
        llava("LlavaOnevision", "llava_onevision", SIGLIP_VISION, video_token_index=VIDEO, **TILES),
        pictures,
        rows,
        lambda: {"pixel_values_videos": noise(1, 4, 3, 40, 40)},
        4,
        37,
    )


CASES = {
    "LLaVA-OneVision, tiles": one_vision(
        lambda: {"pixel_values": noise(1, 5, 3, 40, 40), "image_sizes": sizes((80, 80))}, 5
    ),
    "LLaVA-OneVision, several images": one_vision(
        lambda: {
            "pixel_values": noise(3, 1, 3, 40, 40),
            "image_sizes": sizes((80, 80), (40, 60), (90, 30)),
            "batch_num_images": torch.tensor([3]),
        },
        3,
    ),
    "LLaVA-NeXT, tiles": Case(
        llava("LlavaNext", "llava_next", **TILES),
        lambda: {
            "pixel_values": noise(2, 5, 3, 40, 40),
            "image_sizes": sizes((80, 80), (40, 80)),
        },
        8,
    ),
    "LLaVA-NeXT-Video, tiles": Case(
        llava("LlavaNextVideo", "llava_next_video", video_token_index=VIDEO, **TILES),
        lambda: {"pixel_values": noise(1, 3, 3, 40, 40), "image_sizes": sizes((80, 40))},
        3,
        lambda: {"pixel_values_videos": noise(1, 3, 3, 40, 40)},
        3,
        12,
    ),
    "LLaVA-1.5, several images": Case(
        llava("Llava", "llava"), lambda: {"pixel_values": noise(4, 3, 40, 40)}, 4
    ),
    "InternVL, tiles": Case(
        partial(
            whole,
            "InternVL",
            "internvl",
            {**WIDE, "image_size": [64, 64], "patch_size": [8, 8]},
            image_token_id=IMAGE,
            image_seq_length=16,
            downsample_ratio=0.5,
        ),
        lambda: {"pixel_values": noise(3, 3, 64, 64)},
        3,
    ),
    "Qwen2-VL": packed(qwen("Qwen2VL", "qwen2_vl", embed_dim=32, hidden_size=40, mlp_ratio=2)),
    "Qwen2.5-VL": packed(
        qwen(
            "Qwen2_5_VL",
            "qwen2_5_vl",
            hidden_size=32,
            out_hidden_size=40,
            intermediate_size=48,
            window_size=16,
            fullatt_block_indexes=[1],
        )
    ),
    "Qwen3-VL": packed(
        qwen(
            "Qwen3VL",
            "qwen3_vl",
            hidden_size=32,
            out_hidden_size=40,
            intermediate_size=48,
            num_position_embeddings=25,
            deepstack_visual_indexes=[0],
        )
    ),
    "CLIP": Case(
        partial(whole, "CLIP", "clip", WIDE, WORDS),
        lambda: {"pixel_values": noise(4, 3, 40, 40)},
        4,
        tower="vision_model",
    ),
    "SigLIP": Case(
        partial(whole, "Siglip", "siglip", WIDE, WORDS),
        lambda: {"pixel_values": noise(4, 3, 40, 40)},
        4,
        tower="vision_model",
    ),
}


VIDEOS = [name for name, case in CASES.items() if case.video is not None]
few = pytest.mark.parametrize("case", ["LLaVA-NeXT, tiles", "Qwen2-VL", "SigLIP"], indirect=True)
with_video = pytest.mark.parametrize("case", VIDEOS, indirect=True)


@pytest.fixture(params=CASES)
def case(request):
    """Return one case after the other."""
    return CASES[request.param]


@pytest.fixture
def model(case, seed):
    """Return a whole model with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return case.make()


@pytest.fixture
def pictures(case, seed):
    """Return pictures that have nothing to do with each other."""
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        return case.pictures()


@pytest.fixture
def video(case, seed):
    """Return a video."""
    with torch.random.fork_rng():
        torch.manual_seed(seed + 2)
        return case.video()


def features(method, **given: Any) -> dict[str, Tensor]:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tensors(method(**given))


def same(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return ours.keys() == expected.keys() and all(
        torch.equal(ours[name], tensor) for name, tensor in expected.items()
    )


def differ(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    # Rounding is a hundredth of this.
    return any(
        (ours[name] - tensor).abs().max() > 1e-4 * tensor.abs().max()
        for name, tensor in expected.items()
    )


def length(model: nn.Module, pictures: dict[str, Any]) -> int:
    """Return how many words of the LLM pictures fill."""
    with torch.no_grad():
        found = model.get_image_features(**pictures, return_dict=True).pooler_output
    pieces = found if isinstance(found, list | tuple) else [found]
    return sum(piece.flatten(0, -2).shape[0] for piece in pieces)


def prompt(case: Case, model: nn.Module, pictures: dict[str, Any], video: dict[str, Any] | None):
    """Return what a whole call with pictures, and a video, is given."""
    if case.tower == "vision_model":
        return {"input_ids": torch.tensor([[3, 9, 63]]), **pictures}
    words = [1, *[IMAGE] * length(model, pictures), 5]
    if video is not None:
        words += [*[VIDEO] * case.words, 7]
    return {
        "input_ids": torch.tensor([words]),
        **pictures,
        **(video or {}),
        **case.more(len(words)),
    }


def test_pictures_are_dense(case, model, pictures):
    dense = features(model.get_image_features, **pictures)
    given = prompt(case, model, pictures, None)
    answer = features(model, **given)
    with attach_cacher(model, CONFIG) as cacher:
        assert same(features(model.get_image_features, **pictures), dense)
        assert same(features(model, **given), answer)
        assert (cacher.stats.frames, cacher.stats.streams) == (0, 0)


def test_named_pictures_are_frames(case, model, pictures):
    dense = features(model.get_image_features, **pictures)
    with attach_cacher(model, CONFIG) as cacher:
        with cacher.streams(["clip"] * case.rows):
            assert differ(features(model.get_image_features, **pictures), dense)
        assert cacher.stats.frames == case.rows
        # The names are gone: pictures again, and nothing is kept of them.
        assert same(features(model.get_image_features, **pictures), dense)
        assert cacher.stats.frames == case.rows


@few
def test_it_is_said_once(case, model, pictures):
    with attach_cacher(model, CONFIG), torch.no_grad():
        with pytest.warns(UserWarning, match=r"computed densely.*name their streams"):
            model.get_image_features(**pictures)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.get_image_features(**pictures)
    with attach_cacher(model, CONFIG) as cacher, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        with cacher.paused():
            model.get_image_features(**pictures)


@few
def test_the_tower_itself_is_called_with_frames(case, model, pictures):
    tower = model.get_submodule(case.tower)
    calls = []
    hook = tower.register_forward_pre_hook(lambda *call: calls.append(call[1:]), with_kwargs=True)
    features(model.get_image_features, **pictures)
    hook.remove()
    ((args, kwargs),) = calls
    for attached in (model, tower):
        with attach_cacher(attached, CONFIG) as cacher, torch.no_grad():
            tower(*args, **kwargs)
            assert cacher.stats.frames == case.rows


@with_video
def test_a_video_is_what_it_is_with_the_tower_alone(case, model, video):
    dense = features(model.get_video_features, **as_video(model, video))
    with attach_cacher(model.get_submodule(case.tower), CONFIG):
        expected = features(model.get_video_features, **as_video(model, video))
    assert differ(expected, dense)
    with attach_cacher(model, CONFIG) as cacher:
        assert same(features(model.get_video_features, **as_video(model, video)), expected)
        assert cacher.stats.frames == case.frames


@with_video
def test_pictures_beside_a_video(case, model, pictures, video):
    given = prompt(case, model, pictures, video)
    dense = features(model, **given)
    with attach_cacher(model, CONFIG) as cacher, torch.no_grad():
        compressed = model.get_video_features(**as_video(model, video), return_dict=True)
        cacher.reset()
        ours = features(model, **given)
        assert cacher.stats.frames == 2 * case.frames
    assert not same(ours, dense)
    # Dense pictures, and the compressed video put in its place.
    model.model.get_video_features = lambda *args, **kwargs: compressed
    assert same(features(model, **given), ours)


@with_video
def test_several_videos_in_one_call_need_names(case, model, video):
    several = {}
    for name, value in video.items():
        several[name] = torch.cat(
            [value, value.flip(-1) if name == "pixel_values_videos" else value]
        )
    dense = features(model.get_video_features, **as_video(model, several))
    with attach_cacher(model, CONFIG) as cacher:
        with pytest.raises(
            ValueError, match="the frames of 2 videos in one call must have streams"
        ):
            features(model.get_video_features, **as_video(model, several))
        with cacher.paused():
            assert same(features(model.get_video_features, **as_video(model, several)), dense)
        assert cacher.stats.frames == 0
        with cacher.streams([name for name in "ab" for _ in range(case.frames)]):
            features(model.get_video_features, **as_video(model, several))
        assert (cacher.stats.frames, cacher.stats.refreshes) == (2 * case.frames, 2)


def test_nothing_is_left_behind(case, model, pictures):
    def attributes(model):
        return [set(vars(module)) for module in model.modules()]

    # The first call leaves hooks of transformers' own.
    dense = features(model.get_image_features, **pictures)
    before, other = attributes(model), copy.deepcopy(model)
    cacher = attach_cacher(model, CONFIG)
    assert attributes(other) == before != attributes(model)
    with pytest.raises(TypeError, match="detach the Cacher first"):
        copy.deepcopy(model)
    features(model.get_image_features, **pictures)
    cacher.detach()
    assert attributes(model) == before
    assert same(features(model.get_image_features, **pictures), dense)


def test_threads_do_not_tell_each_other(seed):
    case = CASES["LLaVA-OneVision, tiles"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, pictures, video = case.make(), case.pictures(), case.video()
    dense = features(model.get_image_features, **pictures)
    inside, done, found = threading.Event(), threading.Event(), []

    def stay(*_):
        if threading.current_thread() is thread:
            inside.set()
            assert done.wait(60)

    def look():
        found.append(features(model.get_image_features, **pictures))

    thread = threading.Thread(target=look)
    hook = model.model.multi_modal_projector.register_forward_pre_hook(stay)
    with attach_cacher(model, CONFIG) as cacher:
        thread.start()
        assert inside.wait(60)
        features(model.get_video_features, **as_video(model, video))
        done.set()
        thread.join()
        assert cacher.stats.frames == case.frames
    hook.remove()
    assert not differ(found[0], dense)
