"""How often a batch waits for the device, and what flags that came late do."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from cacher.conftest import Waits
from cacher.fake_gpu import FakeGpus, on_gpu

from stc_stream import CacherConfig, attach_cacher
from stc_stream.cacher.waits import LateFlags


def features(tower, clip):
    with torch.no_grad():
        return tower(clip).last_hidden_state


def counted(monkeypatch, tower, config, clip, batches):
    """Run batches of (rows, names) and return how often each waited."""
    counts = []
    with attach_cacher(tower, config) as cacher, Waits(monkeypatch) as waits:
        for rows, names in batches:
            before = waits.count
            with cacher.streams(list(names)):
                features(tower, clip[rows])
            counts.append(waits.count - before)
    return counts


@pytest.mark.parametrize("keys", ["full", "int8"])
def test_the_plain_schedule_waits_where_a_refresh_is_followed(
    make_tower, make_clip, monkeypatch, keys
):
    config = CacherConfig.paper(refresh_interval=3, self_check=False, reference_keys=keys)
    batches = [
        ([0], "a"),  # a refresh
        ([1], "a"),
        ([2, 3], "bc"),  # a refresh of each
        ([4, 5, 6], "abc"),
        ([7, 0], "ab"),  # a is refreshed
        ([1, 2, 3], "aac"),  # none is
        ([4, 5, 6, 7], "abca"),  # a is refreshed, and its next frame follows
        ([0, 1], "dd"),  # so is d
        ([2, 3, 4, 5], "ddde"),  # d is refreshed at the second of three
        ([6, 7], "dd"),  # d is refreshed at the last
    ]
    counts = counted(monkeypatch, make_tower(), config, make_clip(8), batches)
    assert counts == [0, 0, 0, 0, 0, 0, 1, 1, 1, 0]


def test_an_unseen_change_waits_for_nothing_more(make_tower, make_clip, monkeypatch):
    config = CacherConfig(refresh_interval=100, self_check=False)
    batches = [([0], "a"), ([1], "a"), ([2, 3, 4], "aab"), ([5], "c"), ([6, 7], "cc")]
    counts = counted(monkeypatch, make_tower(), config, make_clip(8), batches)
    # A stream's first frame has nothing to be compared with.
    assert counts == [0, 1, 1, 0, 1]


def test_flags_that_are_late_are_not_waited_for(make_tower, make_clip, monkeypatch):
    tower, clip = make_tower(), make_clip(5)
    dense = features(tower, clip)
    clip[0, 0, 3, 3] = torch.nan
    there = False
    monkeypatch.setattr(LateFlags, "there", property(lambda flags: there))
    with (
        attach_cacher(tower, CacherConfig.paper(refresh_interval=100, self_check=False)) as cacher,
        Waits(monkeypatch) as waits,
    ):
        features(tower, clip[:1])
        early = features(tower, clip[1:2])
        assert (cacher.stats.rejected, cacher.stats.refreshes) == (0, 1)
        there = True
        ours = features(tower, clip[2:3])
        assert (cacher.stats.rejected, cacher.stats.refreshes) == (1, 2)
        features(tower, clip[3:4])
        assert waits.count == 0
    # Held against what was broken.
    assert not early.isfinite().all()
    torch.testing.assert_close(ours, dense[2:3], rtol=1e-5, atol=1e-5)


def test_what_a_hook_made_finite_again_is_not_held(make_tower, make_clip):
    """The input's flag and the output's are of use apart: either alone has a frame rejected."""
    tower, clip = make_tower(), make_clip(3)
    dense = features(tower, clip)
    clip[0, 0, 3, 3] = torch.nan
    with attach_cacher(tower, CacherConfig.paper(refresh_interval=100)) as cacher:
        hook = tower.encoder.layers[0].register_forward_hook(lambda m, i, out: out.nan_to_num())
        assert features(tower, clip[:1]).isfinite().all()
        hook.remove()
        ours = features(tower, clip[1:2])
        assert (cacher.stats.rejected, cacher.stats.refreshes) == (1, 2)
    torch.testing.assert_close(ours, dense[1:2], rtol=1e-5, atol=1e-5)


def test_a_broken_frame_stays_counted_when_its_stream_goes(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(2)
    clip[0, 0, 3, 3] = torch.nan
    broken, fine = clip[:1], clip[1:]

    def fails(*given):
        raise OSError("no luck")

    with attach_cacher(tower, CacherConfig.paper(refresh_interval=100)) as cacher:
        with cacher.streams(["a"]):
            features(tower, broken)
        assert cacher.stats.rejected == 1
        cacher.reset("a")
        with cacher.streams(["b"]):
            features(tower, broken)
            assert cacher.stats.rejected == 2
            hook = tower.encoder.layers[1].register_forward_pre_hook(fails)
            with pytest.raises(OSError, match="no luck"):
                features(tower, fine)
            hook.remove()
            assert cacher.stats.rejected == 2
            features(tower, broken)
        cacher.reset()
        assert (cacher.stats.rejected, cacher.stats.frames) == (3, 3)
    assert cacher.stats.rejected == 3


BATCHES = ["abc", "abcab", "abc", "aabbcc", "bb", "aa"]
"""A row's stream each."""


def followed(batches, interval):
    """Tell of each batch whether one of its refresh frames is followed by another of its stream."""
    frames, found = Counter(), []
    for names in batches:
        refreshed, waits = set(), False
        for name in names:
            refreshes = frames[name] % interval == 0
            waits = waits or (name in refreshed and not refreshes)
            refreshed |= {name} if refreshes else set()
            frames[name] += 1
        found.append(waits)
    return found


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("config", [CacherConfig.paper, CacherConfig])
def test_on_a_gpu_a_batch_waits_once_at_most_before_the_first_layer(
    make_tower, make_clip, monkeypatch, config, graph
):
    tower, clip = make_tower(vision_use_head=False), make_clip(6)
    config = config(refresh_interval=2, self_check=False, cuda_graph=graph)
    with FakeGpus(monkeypatch) as gpus:
        on_gpu(tower, gpus, "cuda:0")
        clip = gpus.put(clip, "cuda:0")
        counts = []
        with attach_cacher(tower, config) as cacher:
            for names in 3 * BATCHES:
                gpus.waits.clear()
                gpus.launches.clear()
                with cacher.streams(list(names)):
                    features(tower, clip[: len(names)])
                counts.append(len(gpus.waits))
                assert all(before["aten.native_layer_norm"] == 0 for _, before in gpus.waits)
            assert not graph or cacher._graphs.replays > 0
    if config.refresh_on_change is None:
        assert counts == followed(3 * BATCHES, 2)
    else:
        # One each, but where no stream has had a frame, and where all are due for a refresh.
        assert counts == [each not in (0, 12) for each in range(18)]
