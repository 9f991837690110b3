"""Attention recorded in a tower, against what the tower itself says of its attention."""

from __future__ import annotations

import copy

import pytest
import torch
from evaluate.test_methods import make, make_packed, pixels, run
from torch.nn import functional

from stc_stream.evaluate.attention import AttentionRecorder
from stc_stream.evaluate.methods import read_method


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("layer", [-1, -2])
def test_it_is_what_the_tower_says_itself(seed, prefix, layer, generator) -> None:
    tower = make(seed, prefix)
    frames = pixels(tower, 3, generator)
    tower.module.set_attn_implementation("eager")
    output = tower.module(frames, output_attentions=True, output_hidden_states=True)
    dense = run(tower, frames)
    recorder = AttentionRecorder(layer)
    with recorder.attach(tower.module) as attached, attached.record() as record:
        assert torch.equal(run(tower, frames), dense)
        assert record.whole == (True,) * 3
        first, rest = recorder.take(1, 16), recorder.take(2, 16)
    weights = output.attentions[layer].mean(1)
    received = weights.mean(1)[:, prefix:]
    from_class = weights[:, 0, 1:] if prefix else received
    block = tower.module.encoder.layers[layer]
    # Hidden states begin with what the first layer is given.
    keys = block.self_attn.k_proj(block.layer_norm1(output.hidden_states[layer - 1]))
    for name, expected in (
        ("received", received),
        ("from_class", from_class),
        ("keys", (keys[..., :16] + keys[..., 16:])[:, prefix:] / 2),
    ):
        found = torch.cat([getattr(first, name), getattr(rest, name)])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_it_is_pooled_as_features_are(seed, generator) -> None:
    tower = make(seed)
    frames = pixels(tower, 2, generator)
    recorder = AttentionRecorder()
    with recorder.attach(tower.module):
        run(tower, frames)
        whole = recorder.take(2, 16)
        run(tower, frames)
        pooled = recorder.take(2, 4)
    received = functional.interpolate(whole.received.view(2, 1, 4, 4), (2, 2), mode="bilinear")
    torch.testing.assert_close(pooled.received, received.flatten(1))
    for place in range(16):
        one = functional.interpolate(
            whole.keys[..., place].view(2, 1, 4, 4), (2, 2), mode="bilinear"
        )
        torch.testing.assert_close(pooled.keys[..., place], one.flatten(1))


def test_only_the_last_call_is_held_and_taken_once(seed, generator) -> None:
    tower = make(seed)
    frames = pixels(tower, 3, generator)
    recorder = AttentionRecorder()
    with pytest.raises(ValueError, match="must have run the 1 frames just before, .* of 0 is left"):
        recorder.take(1, 16)
    with recorder.attach(tower.module) as attached:
        run(tower, frames)
        last = frames[2:] * 2
        run(tower, last)
        # A copy of a rule is told the same: there is one tower.
        found = copy.deepcopy(recorder).take(1, 16)
        with pytest.raises(ValueError, match="of 0 is left"):
            recorder.take(1, 16)
        run(tower, last)
        torch.testing.assert_close(found.received, recorder.take(1, 16).received)
        run(tower, frames)
        recorder.take(1, 16)
        with pytest.raises(ValueError, match="the 3 frames just before, .* of 2 is left"):
            recorder.take(3, 16)
        attached.reset()
        with pytest.raises(ValueError, match="of 0 is left"):
            recorder.take(1, 16)
        run(tower, frames)
        with pytest.raises(ValueError, match="16 patches or a smaller square of them, but are 7"):
            recorder.take(1, 7)
    assert not any("forward" in vars(module) for module in tower.module.modules())


def test_towers_that_it_cannot_read_are_named(seed) -> None:
    with pytest.raises(TypeError, match="packed frames cannot be"):
        AttentionRecorder().attach(make_packed(seed).module)
    with pytest.raises(ValueError, match=r"layer must be in -3\.\.-1, but is -4"):
        AttentionRecorder(-4).attach(make(seed).module)
    with pytest.raises(ValueError, match=r"layer must be in -3\.\.-1, but is 0"):
        AttentionRecorder(0).attach(make(seed).module)


@pytest.mark.parametrize("name", ["visionzip", "streamingtom"])
def test_a_method_s_rule_and_its_tower_part_are_one(name) -> None:
    method = read_method(name)
    assert method.pruner.strategy.attention is method.tower
    assert read_method(name).tower is not method.tower
