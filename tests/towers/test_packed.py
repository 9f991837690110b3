"""Towers whose frames come packed: several grids in a batch, videos, and who is named."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from towers.families import FAMILIES, GRIDS, joined, tensors
from towers.test_parity import assert_same, run, stated

from stc_stream import CacherConfig, attach_cacher
from stc_stream.towers import read_tower

PACKED = [each for each in FAMILIES if each.packed]
MIXED = ["door", "hall", "yard", "door", "yard", "hall", "hall", "door", "yard"]


@pytest.fixture(params=PACKED, ids=lambda family: family.name)
def family(request):
    """Return one family of packed frames after the other."""
    return request.param


def packed(tower, frames, grids):
    with torch.no_grad():
        pixels = torch.cat([frame.pixels for frame in frames])
        return tensors(tower(pixels, grid_thw=torch.tensor(grids)))


@pytest.mark.parametrize("sizes", [[9], [4, 5], [2, 1, 3, 3]])
def test_frames_of_several_sizes_in_a_batch(family, seed, sizes):
    config = CacherConfig.paper(refresh_interval=3)
    tower, frames, outputs, _ = stated(family, config, MIXED, seed)
    ours, stats = run(family, tower, config, frames, MIXED, sizes)
    assert_same(ours, joined(outputs))
    assert (stats.frames, stats.refreshes, stats.streams) == (9, 3, 3)


def test_a_video_of_several_frames_is_its_frames(family, seed):
    streams = ["door"] * 3 + ["hall"] * 2 + ["door"]
    config = CacherConfig.paper(refresh_interval=2)
    tower, frames, outputs, _ = stated(family, config, streams, seed)
    grids = [[3, *GRIDS["door"]], [2, *GRIDS["hall"]], [1, *GRIDS["door"]]]
    for names in (streams, ["door", "hall", "door"]):
        with attach_cacher(tower, config) as cacher, cacher.streams(names):
            assert_same(packed(tower, frames, grids), joined(outputs))
            assert (cacher.stats.frames, cacher.stats.streams) == (6, 2)


def test_one_stream_by_default(family, seed):
    config = CacherConfig.paper(refresh_interval=2)
    tower, frames, outputs, _ = stated(family, config, ["door"] * 4, seed)
    with attach_cacher(tower, config):
        ours = [
            packed(tower, frames[:3], [[3, *GRIDS["door"]]]),
            packed(tower, frames[3:], [[1, *GRIDS["door"]]]),
        ]
    assert_same(joined(ours), joined(outputs))


def test_grids_of_as_many_tokens_are_not_mistaken(family, tower, seed):
    door, yard = family.frames(["door", "yard"], seed)
    assert len(door.pixels) == len(yard.pixels)
    dense = family.run(tower, [yard])
    with attach_cacher(tower, CacherConfig.paper(update_ratio=0.1)) as cacher:
        family.run(tower, [door])
        assert_same(family.run(tower, [yard]), dense)
        assert (cacher.stats.refreshes, cacher.stats.restarts) == (2, 1)


def test_names_that_fit_neither_frames_nor_grids(family, tower, seed):
    frames = family.frames(["door"] * 3, seed)
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        for names in (["door"], ["door"] * 4):
            with (
                cacher.streams(names),
                pytest.raises(ValueError, match=rf"{len(names)} names .* 3 frames in 2 grids"),
            ):
                packed(tower, frames, [[2, *GRIDS["door"]], [1, *GRIDS["door"]]])
        assert cacher.stats.frames == 0


def test_a_record_of_several_sizes(family, tower, seed):
    streams = ["hall", "door", "door", "hall"]
    frames = family.frames(streams, seed)
    with (
        attach_cacher(tower, CacherConfig.paper()) as cacher,
        cacher.streams(streams),
        cacher.record() as recording,
    ):
        family.run(tower, frames)
    for layer in recording:
        assert layer.recomputed.shape == (4, 36)
        assert layer.recomputed.sum(1).tolist() == [36, 24, 6, 9]
        assert not layer.recomputed[1:3, 24:].any()


def test_only_some_qwens_have_windows(family, tower):
    assert read_tower(tower).windowed == (family.name == "Qwen2.5-VL")
    if hasattr(tower, "fullatt_block_indexes"):
        tower.fullatt_block_indexes = [0, 1, 2]
        assert not read_tower(tower).windowed


def test_windows_that_are_made_anew_for_each_layer(family, tower, seed):
    streams = ["door", "hall", "door", "hall"]
    frames = family.frames(streams, seed)

    def anew(module, args, kwargs):
        return args, {**kwargs, "cu_seqlens": kwargs["cu_seqlens"].clone()}

    with attach_cacher(tower, CacherConfig.paper()) as cacher, cacher.streams(streams):
        expected = family.run(tower, frames)
        cacher.reset()
        for layer in tower.blocks:
            layer.register_forward_pre_hook(anew, with_kwargs=True)
        assert_same(family.run(tower, frames), expected)


@pytest.mark.parametrize("streams", [["door", "hall"], ["hall", "door", "yard"]])
def test_the_largest_frame_shows_windows_that_are_left_out(family, tower, streams, seed):
    layer, rows = read_tower(tower).layers[0], []
    alone = family.frames(["hall"], seed)

    def whole(module, args, kwargs):
        rows.append(args[0].shape[0])
        kwargs["cu_seqlens"] = kwargs["cu_seqlens"][[0, -1]]
        return args, kwargs

    windowed = read_tower(tower).windowed
    layer.attention.register_forward_pre_hook(whole, with_kwargs=True)
    refused = pytest.raises(TypeError, match="layer 0") if windowed else nullcontext()
    cacher = attach_cacher(tower)
    with cacher.streams(streams), refused:
        family.run(tower, family.frames(streams, seed))
    # A copy of the layer in float32 decides where they differ.
    assert set(rows) == {len(alone[0].pixels)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda segments: segments[[0, -1]], "must end a segment at the end of each frame"),
        (lambda segments: None, "must be called with cu_seqlens"),
    ],
)
def test_attention_across_frames_is_refused(family, tower, seed, change, reason):
    def across(module, args, kwargs):
        return args, {**kwargs, "cu_seqlens": change(kwargs["cu_seqlens"])}

    for layer in tower.blocks:
        layer.register_forward_pre_hook(across, with_kwargs=True)
    with attach_cacher(tower, CacherConfig.paper()), pytest.raises(ValueError, match=reason):
        family.run(tower, family.frames(["door"] * 2, seed))


def test_grids_must_be_given(family, tower, seed):
    pixels = family.frames(["door"], seed)[0].pixels
    with (
        attach_cacher(tower, CacherConfig.paper()),
        pytest.raises(ValueError, match="grid_thw must be given"),
    ):
        tower(pixels, grid_thw=None)
