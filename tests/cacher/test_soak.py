"""Many frames of many streams that come and go: nothing grows, and every frame is counted."""

from __future__ import annotations

import contextlib
import gc
import random
import resource
from collections import Counter

import pytest
import torch

from stc_stream import CacherConfig, attach_cacher

STREAMS = 50


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("frames", [2_000, pytest.param(20_000, marks=pytest.mark.full)])
@pytest.mark.parametrize("limits", [{}, {"max_streams": 20}])
def test_many_frames_of_fifty_streams(make_tower, seed, limits, frames):
    tower = make_tower(num_hidden_layers=1, image_size=24)
    draw = random.Random(seed)
    clip = torch.randn(64, 3, 24, 24, generator=torch.Generator().manual_seed(seed))
    seen: Counter[str] = Counter()
    refreshes = done = 0
    warm = None
    config = CacherConfig.paper(refresh_interval=4, **limits)
    cameras = [f"camera {number}" for number in range(STREAMS)]
    with torch.inference_mode(), attach_cacher(tower, config) as cacher:

        def feed(names):
            nonlocal done, refreshes
            with cacher.streams(names):
                tower(clip[draw.choices(range(64), k=len(names))])
            for name in names:
                refreshes += seen[name] % 4 == 0
                seen[name] += 1
            done += len(names)

        while done < frames - STREAMS:
            feed(draw.choices(cameras, k=25))
            if draw.random() < 0.1:
                # One that had to go for another is not known any more.
                with contextlib.suppress(ValueError):
                    gone = draw.choice(cameras)
                    seen[gone] = 0
                    cacher.reset(gone)
            if done == frames // 4:
                gc.collect()
                warm = _resident(), len(gc.get_objects())
        feed(cameras)
        gc.collect()
        stats = cacher.stats
        assert warm is not None
        assert _resident() - warm[0] < 16 << 20
        assert len(gc.get_objects()) - warm[1] < 2000
    assert stats.frames == frames
    if limits:
        assert stats.refreshes > refreshes and stats.evictions > 0 and stats.streams == 20
    else:
        assert (stats.refreshes, stats.evictions, stats.streams) == (refreshes, 0, STREAMS)
    selective = stats.frames - stats.refreshes
    assert stats.tokens_recomputed == 9 * stats.refreshes + 2 * selective
    assert stats.tokens_reused == 7 * selective
    assert stats.bytes == stats.streams * 3 * 9 * 32 * 4
