"""A rule of one's own for which tokens are recomputed; held to the statement in tests/towers."""

from __future__ import annotations

import pytest
import torch

from stc_stream import CacherConfig, TokenSelection, attach_cacher


class Scattered:
    """Each frame the same patches, drawn once; notes what it was asked."""

    def __init__(self, seed):
        self.seed, self.asked = seed, []

    def choose(self, current, reference, k):
        self.asked.append((current, reference, k))
        order = torch.randperm(36, generator=torch.Generator().manual_seed(self.seed))
        return order[:k].sort().values.expand(len(current), -1)


class Returns:
    """A rule that returns whatever it is told to."""

    def __init__(self, make):
        self.make = make

    def choose(self, current, reference, k):
        return self.make(len(current), k)


def features(tower, clip):
    with torch.no_grad():
        return tower(clip).last_hidden_state


def test_what_is_chosen_is_recomputed(make_tower, make_clip, seed):
    tower, clip, rule = make_tower(), make_clip(5), Scattered(seed)
    config = CacherConfig.paper(update_ratio=0.3, refresh_interval=100, selection=rule)
    assert isinstance(rule, TokenSelection)
    with attach_cacher(tower, config) as cacher, cacher.record() as recording:
        features(tower, clip[:1])
        features(tower, clip[1:])
        assert cacher.stats.tokens_recomputed == 36 + 4 * 10
    chosen = rule.choose(clip[:1], None, 10)[0].tolist()
    for layer in recording:
        for row in layer.recomputed:
            assert row.nonzero().flatten().tolist() == chosen
    assert [(len(current), k) for current, _, k in rule.asked[:-1]] == [(4, 10)] * 3


@pytest.mark.parametrize("keys", ["full", "int8"])
def test_it_is_shown_keys_and_their_references(make_tower, make_clip, seed, keys):
    tower, clip, rule = make_tower(), make_clip(4), Scattered(seed)
    config = CacherConfig.paper(refresh_interval=100, reference_keys=keys, selection=rule)
    layer = tower.encoder.layers[0]
    with torch.no_grad(), attach_cacher(tower, config) as cacher, cacher.streams(["a", "b"]):
        tower(clip[:2])
        tower(clip[2:])
        with cacher.paused():
            states = tower(clip, output_hidden_states=True).hidden_states[0]
    with torch.no_grad():
        expected = layer.self_attn.k_proj(layer.layer_norm1(states))
    current, reference, _ = rule.asked[0]
    torch.testing.assert_close(current, expected[2:], rtol=1e-5, atol=1e-5)
    step = 0 if keys == "full" else float(expected.abs().max()) / 127
    torch.testing.assert_close(reference, expected[:2], rtol=1e-5, atol=1e-5 + step / 2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda frames, k: [[0] * k] * frames, TypeError, "int64 tensor, but returned a list"),
        (lambda frames, k: torch.zeros(frames, k), TypeError, "int64, but returned float32"),
        (
            lambda frames, k: torch.zeros(frames, k, dtype=torch.int32),
            TypeError,
            "int64, but returned int32",
        ),
        (
            lambda frames, k: torch.arange(k),
            ValueError,
            r"9 patches of each of 2 frames, \[2, 9\], but returned shape \[9\]",
        ),
        (
            lambda frames, k: torch.zeros(frames, k + 1, dtype=torch.int64),
            ValueError,
            r"\[2, 9\], but returned shape \[2, 10\]",
        ),
        (
            lambda frames, k: torch.zeros(frames, k, dtype=torch.int64, device="meta"),
            ValueError,
            "on the keys' device, cpu, but returned them on meta",
        ),
    ],
)
def test_what_a_rule_returns_is_checked(make_tower, make_clip, make, error, message):
    tower, clip = make_tower(), make_clip(3)
    config = CacherConfig.paper(refresh_interval=100, selection=Returns(make))
    with attach_cacher(tower, config) as cacher:
        features(tower, clip[:1])
        with pytest.raises(error, match=message):
            features(tower, clip[1:])
        assert cacher.stats.frames == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.9}, "leave selection or threshold None"),
        ({"cuda_graph": True}, "leave selection None"),
    ],
)
def test_what_a_rule_excludes(seed, settings, message):
    with pytest.raises(ValueError, match=message):
        CacherConfig(selection=Scattered(seed), **settings)
