"""The Cacher's settings are checked when made."""

from __future__ import annotations

import dataclasses

import pytest

from stc_stream import CacherConfig, attach_cacher


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"update_ratio": 0}, ValueError, r"update_ratio must be in \(0, 1\], but is 0"),
        ({"update_ratio": 1.01}, ValueError, r"update_ratio must be in \(0, 1\], but is 1\.01"),
        ({"update_ratio": float("nan")}, ValueError, "update_ratio .* nan"),
        ({"update_ratio": "0.5"}, TypeError, "update_ratio must be a number, but is '0.5'"),
        ({"update_ratio": True}, TypeError, "update_ratio must be a number"),
        ({"refresh_interval": 0}, ValueError, "refresh_interval must be at least 1, but is 0"),
        ({"refresh_interval": 2.0}, TypeError, r"refresh_interval must be an int, but is 2\.0"),
        ({"refresh_on_change": 0}, ValueError, r"refresh_on_change must be in \(0, 1\]"),
        ({"max_refresh_ratio": 1.5}, ValueError, r"max_refresh_ratio must be in \(0, 1\]"),
        ({"max_refresh_ratio": "half"}, TypeError, "max_refresh_ratio must be a number"),
        (
            {"max_refresh_ratio": 0.3, "refresh_interval": 3},
            ValueError,
            r"max_refresh_ratio must be at least 0\.375, the share that refresh_interval = 3 "
            r"takes of 16 frames, but is 0\.3",
        ),
        (
            {"selection": "random"},
            TypeError,
            r"selection must have a method choose\(current, reference, k\), but 'random' has none",
        ),
        ({"metric": "cos"}, ValueError, "metric must be one of cosine, dot, l1, l2, but is 'cos'"),
    ],
)
def test_bad_settings_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        CacherConfig(**settings)


def test_defaults_and_frozen():
    config = CacherConfig()
    assert (config.update_ratio, config.refresh_interval, config.metric) == (0.25, 4, "cosine")
    changed = {
        each.name for each in dataclasses.fields(config) if getattr(config, each.name) is not None
    }
    assert changed == {
        *("update_ratio", "refresh_interval", "metric", "refresh_on_change"),
        *("stagger", "reference_keys", "cuda_graph", "self_check"),
    }
    assert config.refresh_on_change == 0.5 and config.reference_keys == "full"
    assert not config.stagger and not config.cuda_graph and config.self_check
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.update_ratio = 0.5


def test_the_papers_schedule_watches_nothing():
    config = CacherConfig.paper(0.3, 8, metric="l1", max_streams=2)
    assert config == CacherConfig(
        update_ratio=0.3, refresh_interval=8, metric="l1", refresh_on_change=None, max_streams=2
    )
    with pytest.raises(TypeError, match="refresh_on_change"):
        CacherConfig.paper(refresh_on_change=0.5)


@pytest.mark.parametrize(
    ("tokens", "ratio", "k"),
    # 0.29 · 100 is 28.999999999999996 and 0.7 · 10 is 7.0 in doubles.
    [(729, 0.25, 182), (100, 0.29, 29), (10, 0.7, 7), (5, 0.1, 1), (16, 1.0, 16), (16, 1, 16)],
)
def test_updated_tokens(tokens, ratio, k):
    assert CacherConfig(update_ratio=ratio).updated_tokens(tokens) == k


def test_attach_takes_a_config(make_tower):
    with pytest.raises(TypeError, match="config must be a CacherConfig, but is a dict"):
        attach_cacher(make_tower(), {"update_ratio": 0.5})
