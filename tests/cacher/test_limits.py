"""How much a Cacher holds: limits on streams and bytes, 8-bit keys, frames that are not finite."""

from __future__ import annotations

import pytest
import torch
from cacher.conftest import Repeats

import stc_kernels
from stc_stream import CacherConfig, attach_cacher
from stc_stream.cacher.graphs import GraphStore

REFERENCE = 3 * 3 * 36 * 32 * 4
"""Bytes of one stream's reference: K, V and Δ of 3 layers, 36 tokens of 32 channels, float32."""


def features(tower, clip):
    with torch.no_grad():
        return tower(clip).last_hidden_state


def close(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "limit", [{"max_streams": 2}, {"max_bytes": 2 * REFERENCE}, {"max_bytes": 3 * REFERENCE - 1}]
)
def test_the_stream_not_seen_for_longest_starts_anew(make_tower, make_clip, limit):
    tower, clip = make_tower(), make_clip(8)
    dense = features(tower, clip)
    with attach_cacher(tower, CacherConfig.paper(refresh_interval=100, **limit)) as cacher:
        with cacher.streams(["a", "b", "a", "c"]):
            features(tower, clip[:4])
        stats = cacher.stats
        assert (stats.streams, stats.evictions, stats.bytes) == (2, 1, 2 * REFERENCE)
        with cacher.streams(["a", "b"]):
            ours = features(tower, clip[4:6])
        assert not torch.allclose(ours[0], dense[4], atol=1e-3)
        close(ours[1], dense[5])
        assert cacher.stats.evictions == 2
        assert cacher.stats.bytes == 2 * REFERENCE


def test_more_streams_in_a_batch_than_may_be_held(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(6)
    dense = features(tower, clip)
    with attach_cacher(tower, CacherConfig.paper(refresh_interval=100, max_streams=1)) as cacher:
        with cacher.streams(["a", "b", "a", "a", "c", "c"]):
            ours = features(tower, clip)
        stats = cacher.stats
    close(ours[[0, 1, 2, 4]], dense[[0, 1, 2, 4]])
    assert (stats.refreshes, stats.evictions, stats.streams, stats.bytes) == (4, 3, 1, REFERENCE)


def test_bytes_hold_through_frames_of_several_sizes(make_tower, make_clip):
    tower = make_tower()
    small, large = make_clip(4), make_clip(2, size=64)
    limit = 3 * 3 * 64 * 32 * 4 + REFERENCE
    config = CacherConfig.paper(refresh_interval=100, max_bytes=limit)
    with torch.no_grad(), attach_cacher(tower, config) as cacher:
        for names, clip in (("abcd", small), ("xy", large), ("ab", small[:2]), ("xb", large)):
            with cacher.streams(list(names)):
                tower(clip, interpolate_pos_encoding=True)
            assert 0 < cacher.stats.bytes <= limit
        assert cacher.stats.restarts == 1
        with cacher.paused():
            dense = tower(large, interpolate_pos_encoding=True).last_hidden_state
        with cacher.streams(["x", "x"]):
            ours = tower(large, interpolate_pos_encoding=True).last_hidden_state
        close(ours[0], dense[0])


def test_bytes_hold_with_room_kept_for_graphs(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(8)
    with attach_cacher(
        tower, CacherConfig.paper(max_bytes=5 * REFERENCE, cuda_graph=True)
    ) as cacher:
        cacher._graphs = GraphStore(Repeats())
        for count in (4, 5, 5, 5, 8):
            with cacher.streams(range(count)):
                features(tower, clip[:count])
            assert cacher.stats.bytes <= 5 * REFERENCE
        assert cacher._graphs.replays > 0


def test_memory_given_back_in_inference_mode_is_written_outside_it(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(6)
    dense = features(tower, clip)
    small = clip[:1, :, :32, :32]
    config = CacherConfig.paper(refresh_interval=2, max_bytes=3 * REFERENCE)
    with attach_cacher(tower, config) as cacher:
        with torch.inference_mode():
            with cacher.streams(["a", "b", "c"]):
                tower(clip[:3])
            cacher.reset("b")
            with cacher.streams(["small"]):
                tower(small, interpolate_pos_encoding=True)
        with cacher.streams(["a", "c"]):
            features(tower, clip[2:4])
            close(features(tower, clip[4:]), dense[4:])


def test_memory_is_free_once_no_stream_is_left(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(2)
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        with cacher.streams(["a", "b"]):
            features(tower, clip)
        cacher.reset("a")
        cacher.reset("b")
        assert cacher.stats.bytes == 0


def test_a_limit_below_one_reference_is_named(make_tower, make_clip):
    with (
        attach_cacher(make_tower(), CacherConfig.paper(max_bytes=REFERENCE - 1)) as cacher,
        pytest.raises(ValueError, match=f"at least {REFERENCE}, .*but is {REFERENCE - 1}"),
    ):
        features(make_tower(), make_clip(1)), features(cacher.tower.encoder, torch.ones(1, 36, 32))


def test_eight_bit_keys_choose_as_stated(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(5)
    config = CacherConfig.paper(refresh_interval=100, reference_keys="int8")
    with torch.no_grad(), attach_cacher(tower, config) as cacher:
        with cacher.record() as first:
            tower(clip[:1])
        assert first.layers[0].refreshed.all()
        # The keys that were rounded, from the layer's own weights.
        states = tower(clip[1:2], output_hidden_states=True).hidden_states
        layer = tower.encoder.layers[0]
        with cacher.paused():
            reference = layer.self_attn.k_proj(
                layer.layer_norm1(tower(clip[:1], output_hidden_states=True).hidden_states[0])
            )
        scale = reference.abs().amax(-1, keepdim=True) / 127
        rounded = (reference / scale).round() * scale
        with cacher.record() as recording:
            tower(clip[1:2])
        current = layer.self_attn.k_proj(layer.layer_norm1(states[0]))
    similarity = stc_kernels.patch_similarity(current, rounded)
    close(recording.layers[0].similarity(), similarity)
    chosen = similarity[0].argsort(stable=True)[:9]
    assert recording.layers[0].recomputed[0].nonzero().flatten().tolist() == sorted(chosen.tolist())


def test_eight_bit_keys_take_a_quarter(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(2)
    with attach_cacher(tower, CacherConfig.paper(reference_keys="int8")) as cacher:
        with cacher.streams(["a", "b"]):
            features(tower, clip)
        assert cacher.stats.bytes == 2 * 3 * 36 * (32 + 4 + 2 * 32 * 4)


@pytest.mark.parametrize("reference_keys", ["full", "int8"])
def test_eight_bit_keys_change_nothing_when_all_is_recomputed(
    make_tower, make_clip, reference_keys
):
    tower, clip = make_tower(), make_clip(5)
    dense = features(tower, clip)
    config = CacherConfig.paper(update_ratio=1.0, reference_keys=reference_keys)
    with attach_cacher(tower, config):
        close(features(tower, clip), dense)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("sizes", [[1] * 6, [6], [2, 4]])
def test_a_broken_refresh_frame_is_not_held(make_tower, make_clip, bad, sizes):
    tower, clip = make_tower(), make_clip(6)
    dense = features(tower, clip)
    broken = clip.clone()
    broken[0, :, :8, :8] = bad
    broken[1, 0, 3, 3] = bad
    with attach_cacher(tower, CacherConfig.paper(refresh_interval=100)) as cacher:
        ours = torch.cat([features(tower, part) for part in broken.split(sizes)])
        close(ours[2], dense[2])
        assert ours[3:].isfinite().all()
        assert (cacher.stats.rejected, cacher.stats.refreshes) == (2, 3)


def test_a_broken_selective_frame_leaves_the_next_as_it_would_be(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(4)
    broken = clip.clone()
    broken[2, :, :, 20] = torch.nan
    config = CacherConfig.paper(refresh_interval=100)
    with attach_cacher(tower, config):
        expected = features(tower, clip)
    for sizes in ([1] * 4, [4]):
        with attach_cacher(tower, config) as cacher:
            ours = torch.cat([features(tower, part) for part in broken.split(sizes)])
            assert cacher.stats.rejected == 0
        close(ours[[0, 1, 3]], expected[[0, 1, 3]])


def test_what_overflows_inside_the_tower_is_not_held(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(3)
    dense = features(tower, clip)

    def overflow(module, inputs, output):
        hook.remove()
        output[0, 5] = torch.inf
        return output

    config = CacherConfig.paper(refresh_interval=100, self_check=False)
    with attach_cacher(tower, config) as cacher:
        hook = tower.encoder.layers[1].mlp.fc1.register_forward_hook(
            lambda module, inputs, output: overflow(module, inputs, output)
        )
        features(tower, clip[:1])
        close(features(tower, clip[1:2]), dense[1:2])
        assert (cacher.stats.rejected, cacher.stats.refreshes) == (1, 2)
        features(tower, clip[2:])
        assert cacher.stats.refreshes == 2


def test_frames_of_another_shape_but_as_many_tokens_start_anew(make_tower, make_clip):
    tower = make_tower()
    square = make_clip(2)
    wide = torch.nn.functional.interpolate(square, (32, 72))
    with torch.no_grad(), attach_cacher(tower, CacherConfig.paper(refresh_interval=100)) as cacher:
        tower(square)
        with cacher.paused():
            dense = tower(wide, interpolate_pos_encoding=True).last_hidden_state
        ours = tower(wide, interpolate_pos_encoding=True).last_hidden_state
        assert (cacher.stats.refreshes, cacher.stats.restarts) == (2, 1)
    close(ours[0], dense[0])


def test_streams_without_references_are_limited_too(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(1)
    config = CacherConfig.paper(refresh_interval=1, max_streams=3)
    with attach_cacher(tower, config) as cacher:
        for name in range(20):
            with cacher.streams([name]):
                features(tower, clip)
        assert (cacher.stats.streams, cacher.stats.evictions) == (3, 17)


def test_streams_that_went_for_a_batch_that_failed_are_counted(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(2)
    with attach_cacher(tower, CacherConfig.paper(max_streams=1)) as cacher:
        with cacher.streams(["a"]):
            features(tower, clip[:1])

        def fail(module, inputs):
            raise KeyboardInterrupt

        hook = tower.encoder.layers[2].register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt), cacher.streams(["b"]):
            features(tower, clip[1:])
        hook.remove()
        assert (cacher.stats.streams, cacher.stats.evictions, cacher.stats.frames) == (0, 1, 1)
