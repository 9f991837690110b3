"""Any interleaving of streams, batches, resets and limits gives what frame by frame gives."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace

import pytest
import torch

pytest.importorskip("hypothesis", reason="hypothesis is not installed here")
from cacher.conftest import CLEAR, Repeats, choice_margin
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from stc_stream import CacherConfig, attach_cacher
from stc_stream.cacher.graphs import GraphStore

STREAMS = ["door", "yard", 3]
FRAMES = 14

# A run: each step a batch of streams, then those that are reset.
batches = st.lists(
    st.tuples(
        st.lists(st.sampled_from(STREAMS), min_size=1, max_size=6),
        st.lists(st.sampled_from(STREAMS), max_size=1),
    ),
    min_size=1,
    max_size=5,
).filter(lambda steps: sum(len(names) for names, _ in steps) <= FRAMES)


def make_config(refresh_interval, most, **settings):
    """Return settings whose cap leaves room for the schedule, if only just."""
    if most is not None:
        most = max(most, math.ceil(16 / refresh_interval) / 16)
    return CacherConfig(refresh_interval=refresh_interval, max_refresh_ratio=most, **settings)


configs = st.builds(
    make_config,
    update_ratio=st.sampled_from([0.1, 0.25, 0.6, 1.0]),
    refresh_interval=st.integers(1, 5),
    metric=st.sampled_from(["cosine", "l2"]),
    threshold=st.sampled_from([None, None, 0.9]),
    refresh_on_change=st.sampled_from([None, 0.2, CacherConfig().refresh_on_change]),
    most=st.sampled_from([None, None, 0.3]),
    stagger=st.booleans(),
    max_streams=st.sampled_from([None, 1, 2]),
    reference_keys=st.sampled_from(["full", "int8"]),
)


@pytest.fixture
def scene(make_tower, make_clip, seed):
    """A tower, and frames of two scenes, of a moving camera, and one that is broken."""
    moving = [make_clip(1, seed=seed + number) for number in range(2, 5)]
    clip = torch.cat([make_clip(6), make_clip(FRAMES - 9, seed=seed + 1), *moving])
    clip[4, 0, 9, 9] = torch.nan
    return make_tower(num_hidden_layers=2), clip


@settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
@given(steps=batches, config=configs, graphs=st.booleans())
def test_batches_are_their_frames(scene, steps, config, graphs):
    tower, clip = scene
    with torch.no_grad(), attach_cacher(tower, config) as cacher:
        expected, margin, first = [], math.inf, 0
        for names, resets in steps:
            for name in names:
                with cacher.streams([name]), cacher.record() as recording:
                    expected.append(tower(clip[first : first + 1]).last_hidden_state)
                margin = min(margin, choice_margin(recording, config.threshold))
                first += 1
            _reset(cacher, resets)
        stats = cacher.stats
    # Where two tokens are as good as equally similar, either choice is right.
    assume(margin > CLEAR)
    with torch.no_grad(), attach_cacher(tower, config) as cacher:
        if graphs and config.threshold is None:
            cacher._graphs = GraphStore(Repeats())
        ours, first = [], 0
        for names, resets in steps:
            with cacher.streams(names):
                ours.append(tower(clip[first : first + len(names)]).last_hidden_state)
            first += len(names)
            _reset(cacher, resets)
        ours_stats = cacher.stats
    torch.testing.assert_close(
        torch.cat(ours), torch.cat(expected), rtol=1e-5, atol=1e-5, equal_nan=True
    )
    if config.threshold is None:
        # How many places were ever needed at once, and are held, depends on the batches.
        assert replace(ours_stats, bytes=0) == replace(stats, bytes=0)


def _reset(cacher, names):
    for name in names:
        # A stream that was not there, or had to go for another, is not known.
        with contextlib.suppress(ValueError):
            cacher.reset(name)
