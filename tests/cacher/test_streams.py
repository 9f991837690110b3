"""Streams side by side: names, resets, counts, memory, threads, and frames that go wrong."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import uuid
from functools import partial

import numpy as np
import pytest
import torch

from stc_stream import CacherConfig, attach_cacher


def features(tower, clip):
    with torch.no_grad():
        return tower(clip).last_hidden_state


def close(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_streams_do_not_touch_each_other(make_tower, make_clip, seed):
    tower, door, yard = make_tower(), make_clip(6), make_clip(6, seed=seed + 1)
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        with cacher.streams(["door"] * 6):
            alone = features(tower, door)
        cacher.reset()
        for t in range(6):
            with cacher.streams(["door", "yard"]):
                together = features(tower, torch.stack([door[t], yard[t]]))
            close(together[0], alone[t])


def test_any_hashable_names_a_stream(make_tower, make_clip):
    tower = make_tower()
    with (
        attach_cacher(tower, CacherConfig.paper()) as cacher,
        cacher.streams([7, ("rack", 3), None]),
    ):
        features(tower, make_clip(3))
        assert cacher.stats.streams == 3
        cacher.reset(("rack", 3), None)
        assert cacher.stats.streams == 1


def test_reset_starts_a_stream_anew(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(4)
    dense = features(tower, clip)
    with attach_cacher(tower, CacherConfig.paper(refresh_interval=100)) as cacher:
        with cacher.streams(["door", "yard"]):
            features(tower, clip[:2])
        cacher.reset("door")
        with cacher.streams(["door", "yard"]):
            ours = features(tower, clip[2:])
        close(ours[0], dense[2])
        assert not torch.allclose(ours[1], dense[3], atol=1e-3)
        with pytest.raises(ValueError, match=r"'garden'; streams known: 'door', 'yard'"):
            cacher.reset("door", "garden")
        assert cacher.stats.streams == 2
        cacher.reset()
        assert (cacher.stats.streams, cacher.stats.bytes) == (0, 0)
        with pytest.raises(ValueError, match="streams known: none"):
            cacher.reset("door")


def test_a_reset_stream_leaves_its_memory_to_the_next(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(3)
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        with cacher.streams(["a", "b", "c"]):
            features(tower, clip)
        held = cacher.stats.bytes
        cacher.reset("b")
        with cacher.streams(["d"]):
            features(tower, clip[:1])
        assert cacher.stats.bytes == held


def test_stats_count_frames_tokens_and_bytes(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(5)
    with attach_cacher(tower, CacherConfig.paper(update_ratio=0.25, refresh_interval=4)) as cacher:
        features(tower, clip[:1])
        features(tower, clip[1:])
        stats = cacher.stats
        assert (stats.frames, stats.refreshes, stats.streams) == (5, 2, 1)
        assert stats.tokens_recomputed == 2 * 36 + 3 * 9
        assert stats.tokens_reused == 3 * 27
        assert stats.bytes == 3 * 3 * 36 * 32 * 4
        with cacher.streams(["other"] * 2):
            features(tower, clip[:2])
        assert cacher.stats.bytes == 2 * stats.bytes


def test_memory_grows_with_streams_not_with_frames(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(6)
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        for count in (1, 2, 3, 5):
            with cacher.streams(range(count)):
                features(tower, clip[:count])
            assert cacher.stats.bytes == count * 3 * 3 * 36 * 32 * 4


def test_refreshing_every_frame_holds_nothing(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(3)
    dense = features(tower, clip)
    with attach_cacher(tower, CacherConfig.paper(refresh_interval=1)) as cacher:
        close(features(tower, clip), dense)
        assert (cacher.stats.bytes, cacher.stats.refreshes) == (0, 3)


def test_paused_is_dense_and_leaves_no_trace(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(4)
    dense = features(tower, clip)
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        features(tower, clip[:2])
        before = cacher.stats
        with cacher.paused():
            assert torch.equal(features(tower, clip), dense)
        assert cacher.stats == before
        assert not torch.allclose(features(tower, clip[2:3]), dense[2:3], atol=1e-3)


def test_paused_inside_a_forward_is_dense(make_tower, make_clip):
    tower, clip, seen = make_tower(), make_clip(2), []
    dense = features(tower, clip)
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        features(tower, clip[:1])

        def look(module, inputs):
            hook.remove()
            with cacher.paused():
                seen.append(features(tower, clip))

        hook = tower.encoder.layers[1].layer_norm2.register_forward_pre_hook(look)
        features(tower, clip[1:])
    assert torch.equal(seen[0], dense)


def test_names_must_match_the_rows(make_tower, make_clip):
    tower = make_tower()
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        with cacher.streams(["a", "b"]), pytest.raises(ValueError, match=r"2 names .* 3 rows"):
            features(tower, make_clip(3))
        for names in ("door", 3, {"a", "b"}):
            with pytest.raises(TypeError, match="one name a row"), cacher.streams(names):
                pass
        for name in (["a"], ("rack", ["a"])):
            with pytest.raises(TypeError, match="must have hashable names"), cacher.streams([name]):
                pass
        assert cacher.stats.frames == 0


def test_a_batch_that_is_refused_costs_no_stream_anything(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(5)
    config = CacherConfig.paper(refresh_interval=100)
    with attach_cacher(tower, config) as cacher, cacher.streams(["a", "b"]):
        features(tower, clip[:2])
        expected = features(tower, clip[2:4])
    with attach_cacher(tower, config) as cacher, cacher.streams(["a", "b"]):
        features(tower, clip[:2])
        before = cacher.stats
        with pytest.raises(ValueError, match=r"2 names .* 3 rows"):
            features(tower, clip[2:])
        assert cacher.stats == before
        close(features(tower, clip[2:4]), expected)


def test_a_name_that_compares_by_identity_is_refused(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(1)
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        for name in (torch.tensor(3), ("rack", torch.zeros(2)), object()):
            with pytest.raises(TypeError, match="compare by value"), cacher.streams([name]):
                features(tower, clip)
            with pytest.raises(TypeError, match="compare by value"):
                cacher.reset(name)
        features(tower, clip)  # nothing was named
        assert cacher.stats.streams == 1


def test_names_that_are_equal_are_one_stream(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(3)
    with (
        attach_cacher(tower, CacherConfig.paper()) as cacher,
        cacher.streams([7, np.int64(7), ("rack", uuid.UUID(int=1))]),
    ):
        features(tower, clip)
        with cacher.streams([torch.tensor([7]).tolist()[0], ("rack", uuid.UUID(int=1)), 7.0]):
            features(tower, clip)
        assert cacher.stats.streams == 2


def test_after_a_name_every_forward_needs_one(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(4)
    dense = features(tower, clip)
    with attach_cacher(tower, CacherConfig.paper(refresh_interval=100)) as cacher:
        close(features(tower, clip[:1]), dense[:1])  # before any name: the one stream of all
        with cacher.streams(["door"]):
            features(tower, clip[:1])
        before = cacher.stats
        for _ in range(2):
            with pytest.raises(ValueError, match=r"must name each row .* reset\(\).*to_thread"):
                features(tower, clip[1:2])
        assert cacher.stats == before
        with cacher.paused():
            assert torch.equal(features(tower, clip), dense)
        with cacher.streams(["door"]):
            door = features(tower, clip[1:2])
        cacher.reset("door")
        with pytest.raises(ValueError, match="must name each row"):
            features(tower, clip[1:2])
        cacher.reset()
        close(features(tower, clip[:1]), dense[:1])
        close(features(tower, clip[1:2]), door)


def test_a_reset_inside_named_streams_keeps_to_names(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(2)
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        with cacher.streams(["door"]):
            cacher.reset()
            features(tower, clip[:1])
        with pytest.raises(ValueError, match="must name each row"):
            features(tower, clip[1:])


def carried(loop, work):
    return loop.run_in_executor(None, contextvars.copy_context().run, work)


@pytest.mark.parametrize(
    ("run", "arrives"),
    [
        (lambda loop, work: loop.run_in_executor(None, work), False),
        (lambda loop, work: asyncio.to_thread(work), True),
        (carried, True),
    ],
    ids=["executor", "to_thread", "copy_context"],
)
def test_names_that_do_not_reach_a_thread_are_missed(run, arrives, make_tower, make_clip, seed):
    tower = make_tower()
    clips = {"door": make_clip(3), "yard": make_clip(3, seed=seed + 1)}
    config = CacherConfig.paper(refresh_interval=100)
    alone = {}
    for name, clip in clips.items():
        with attach_cacher(tower, config):
            alone[name] = features(tower, clip)

    async def feed(cacher, name):
        frames = []
        for frame in clips[name]:
            with cacher.streams([name]):
                work = partial(features, tower, frame[None])
                frames.append(await run(asyncio.get_running_loop(), work))
        return torch.cat(frames)

    async def serve(cacher):
        return await asyncio.gather(*(feed(cacher, name) for name in clips))

    with attach_cacher(tower, config) as cacher:
        if arrives:
            for ours, expected in zip(asyncio.run(serve(cacher)), alone.values(), strict=True):
                close(ours, expected)
            assert cacher.stats.streams == 2
        else:
            with pytest.raises(ValueError, match=r"enter it there, or run .*copy_context\(\)\.run"):
                asyncio.run(serve(cacher))
            assert cacher.stats.frames == 0


def test_an_empty_batch_is_empty(make_tower):
    tower = make_tower()
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        assert features(tower, torch.empty(0, 3, 48, 48)).shape == (0, 36, 32)
        with cacher.streams([]), cacher.record():
            features(tower, torch.empty(0, 3, 48, 48))
        assert cacher.stats.frames == 0


def test_frames_of_another_size_start_a_new_reference(make_tower, make_clip):
    tower = make_tower()
    small, large = make_clip(3), make_clip(3, size=64)
    with torch.no_grad(), attach_cacher(tower, CacherConfig.paper(refresh_interval=100)) as cacher:
        tower(small)
        with cacher.paused():
            dense = tower(large, interpolate_pos_encoding=True).last_hidden_state
        ours = tower(large, interpolate_pos_encoding=True).last_hidden_state
        close(ours[0], dense[0])
        assert not torch.allclose(ours[1], dense[1], atol=1e-3)
        assert cacher.stats.refreshes == 2
        assert cacher.stats.bytes == 3 * 3 * 64 * 32 * 4


def test_another_dtype_starts_a_new_reference(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(2)
    with attach_cacher(tower, CacherConfig.paper(refresh_interval=100)) as cacher:
        features(tower, clip)
        features(tower.bfloat16(), clip)
        assert cacher.stats.refreshes == 2
        assert cacher.stats.bytes == 3 * 3 * 36 * 32 * 2


def test_an_error_leaves_counts_and_the_next_frame_is_whole(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(6)
    dense = features(tower, clip)
    with attach_cacher(tower, CacherConfig.paper(refresh_interval=3)) as cacher:
        with cacher.streams(["a", "b"]):
            features(tower, clip[:2])
        before = cacher.stats

        def fail(module, inputs):
            raise KeyboardInterrupt

        hook = tower.encoder.layers[2].mlp.register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt), cacher.streams(["a", "new"]):
            features(tower, clip[2:4])
        hook.remove()
        after = cacher.stats
        assert (after.frames, after.streams) == (before.frames, before.streams)
        with cacher.streams(["a", "b"]):
            ours = features(tower, clip[4:])
        close(ours[0], dense[4])
        assert not torch.allclose(ours[1], dense[5], atol=1e-3)
        assert cacher.stats.refreshes == before.refreshes + 1


def test_a_broken_frame_is_over_at_the_next_refresh(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(4)
    dense = features(tower, clip)
    broken = clip.clone()
    broken[0, :, :8, :8] = torch.nan
    with attach_cacher(tower, CacherConfig.paper(refresh_interval=2)):
        close(features(tower, broken)[2], dense[2])


def test_inference_mode_and_back(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(6)
    with attach_cacher(tower, CacherConfig.paper(refresh_interval=2)) as cacher:
        with torch.inference_mode():
            first = tower(clip[:3]).last_hidden_state
        second = features(tower, clip[3:])
        cacher.reset()
        close(torch.cat([first, second]), features(tower, clip))


def test_outputs_carry_no_gradient(make_tower, make_clip):
    tower = make_tower()
    with attach_cacher(tower, CacherConfig.paper()):
        hidden = tower(make_clip(2), output_hidden_states=True).hidden_states
    assert not any(state.requires_grad for state in hidden[1:])


def test_threads_have_streams_of_their_own(make_tower, make_clip, seed):
    tower = make_tower()
    clips = {name: make_clip(12, seed=seed + name) for name in range(4)}
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        alone = {}
        for name, clip in clips.items():
            with cacher.streams([name] * 12):
                alone[name] = features(tower, clip)
        cacher.reset()
        together = {}

        def feed(name):
            frames = []
            for frame in clips[name]:
                with cacher.streams([name]):
                    frames.append(features(tower, frame[None]))
            together[name] = torch.cat(frames)

        threads = [threading.Thread(target=feed, args=[name]) for name in clips]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name in clips:
            close(together[name], alone[name])
