"""Attaching and detaching: what can be read, what changes, and that nothing is left behind."""

from __future__ import annotations

import contextvars
import copy
import functools
import gc
import weakref

import pytest
import torch
from torch import nn
from towers import shapes
from towers.families import OWN
from transformers import SiglipConfig, SiglipModel

from stc_stream import CacherConfig, attach_cacher


def features(tower, clip):
    with torch.no_grad():
        return tower(clip).last_hidden_state


def attributes(tower):
    return {name: set(vars(module)) for name, module in tower.named_modules()}


def test_detached_the_tower_is_as_it_was(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(3)
    dense, before, state = features(tower, clip), attributes(tower), list(tower.state_dict())
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        assert list(tower.state_dict()) == state
        assert not torch.equal(features(tower, clip), dense)
    assert attributes(tower) == before
    assert torch.equal(features(tower, clip), dense)
    assert (cacher.stats.streams, cacher.stats.bytes) == (0, 0)
    cacher.detach()
    with attach_cacher(tower, CacherConfig.paper()):
        features(tower, clip)


def test_an_error_inside_the_block_detaches(make_tower, make_clip):
    tower = make_tower()
    before = attributes(tower)
    with pytest.raises(ZeroDivisionError), attach_cacher(tower, CacherConfig.paper()):
        raise ZeroDivisionError
    assert attributes(tower) == before


def test_two_towers_side_by_side(make_tower, make_clip, seed):
    first, second = make_tower(), make_tower(seed=seed + 1)
    clip = make_clip(3)
    dense = features(second, clip)
    with attach_cacher(first, CacherConfig.paper()) as cacher:
        ours = features(first, clip)
        assert torch.equal(features(second, clip), dense)
        with attach_cacher(second, CacherConfig.paper(refresh_interval=1)) as other:
            torch.testing.assert_close(features(second, clip), dense, rtol=1e-5, atol=1e-5)
            with cacher.streams(["a"] * 3), other.paused():
                assert torch.equal(features(first, clip), ours)
                features(second, clip)
            assert (cacher.stats.frames, other.stats.frames) == (6, 3)
        assert torch.equal(features(second, clip), dense)


def test_a_whole_model_is_searched_for_its_tower(make_clip):
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = SiglipConfig(
        text_config={**shape, "vocab_size": 60, "projection_size": 32},
        vision_config={**shape, "image_size": 48, "patch_size": 8},
    )
    model = SiglipModel(config).eval()
    words = torch.randint(0, 60, (3, 9))
    with torch.no_grad():
        text = model.get_text_features(words).pooler_output
        with attach_cacher(model, CacherConfig.paper()) as cacher:
            with cacher.streams(["clip"] * 3):
                model(input_ids=words, pixel_values=make_clip(3))
            assert torch.equal(model.get_text_features(words).pooler_output, text)
    assert cacher.tower.path == "vision_model"
    assert cacher.stats.frames == 3


def test_a_second_cacher_is_refused(make_tower):
    tower = make_tower()
    with (
        attach_cacher(tower, CacherConfig.paper()),
        pytest.raises(ValueError, match="has a Cacher already"),
    ):
        attach_cacher(nn.ModuleDict({"vision": tower}))


def test_other_patches_are_not_run_over(make_tower, make_clip):
    tower = make_tower()
    tower.encoder.layers[1].forward = lambda x, *_, **__: x
    with pytest.raises(TypeError, match=r"layer 1 .* forward of its own"):
        attach_cacher(tower, CacherConfig.paper())
    assert "forward" not in vars(tower.encoder)
    del tower.encoder.layers[1].forward
    cacher = attach_cacher(tower, CacherConfig.paper())
    ours = tower.encoder.forward
    tower.encoder.forward = lambda *_: None
    with pytest.raises(RuntimeError, match="replaced after the Cacher"):
        cacher.detach()
    tower.encoder.forward = ours
    cacher.detach()


def test_a_method_put_back_by_hand_is_no_patch(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(2)
    layer = tower.encoder.layers[1]
    layer.forward = type(layer).forward.__get__(layer)
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        features(tower, clip)
    assert cacher.stats.frames == 2
    assert layer.forward == type(layer).forward.__get__(layer)


def test_an_encoder_patched_before_stays_patched(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(2)
    calls = []
    plain = tower.encoder.forward

    def counted(*args, **kwargs):
        calls.append(1)
        return plain(*args, **kwargs)

    tower.encoder.forward = counted
    with attach_cacher(tower, CacherConfig.paper()):
        features(tower, clip)
    assert calls == [1]
    assert tower.encoder.forward is counted


def test_what_transformers_forgot_around_a_layer_is_no_patch(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(2)
    before = attributes(tower)
    # As transformers 5.0 wraps layers to collect their output, and leaves it so after an error.
    source = """
@functools.wraps(plain)
def wrapped(*args, **kwargs):
    return plain(*args, **kwargs)
"""
    with attach_cacher(tower, CacherConfig.paper()):
        layer = tower.encoder.layers[1]
        names = {"__name__": "transformers.utils", "functools": functools, "plain": layer.forward}
        exec(source, names)
        layer.forward = names["wrapped"]
        features(tower, clip)
    assert attributes(tower) == before


def test_an_attached_tower_cannot_be_copied(make_tower):
    tower = make_tower()
    with (
        attach_cacher(tower, CacherConfig.paper()),
        pytest.raises(TypeError, match="detach the Cacher first"),
    ):
        copy.deepcopy(tower)
    copy.deepcopy(tower)


def test_nothing_keeps_a_dropped_tower_alive(make_tower, make_clip):
    tower = make_tower()
    cacher = attach_cacher(tower, CacherConfig.paper())
    with cacher.streams(["a"] * 2):
        features(tower, make_clip(2))
    gone = weakref.ref(tower.encoder)
    del tower, cacher
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    "change", ["in place", "parameter", "state dict", "there and back", "data", "inference mode"]
)
def test_new_weights_are_noticed(make_tower, make_clip, seed, change):
    tower, clip = make_tower(), make_clip(2)
    other = make_tower(seed=seed + 1)
    with attach_cacher(tower, CacherConfig.paper(refresh_interval=1)) as cacher:
        features(tower, clip)
        for layer, new in zip(tower.encoder.layers, other.encoder.layers, strict=True):
            for name in ("q_proj", "v_proj"):
                old, source = getattr(layer.self_attn, name), getattr(new.self_attn, name)
                with torch.no_grad():
                    if change == "in place":
                        old.weight.copy_(source.weight)
                        old.bias.add_(1)
                    elif change == "parameter":
                        old.weight = nn.Parameter(source.weight.clone())
                    elif change == "state dict":
                        old.load_state_dict(source.state_dict())
                    elif change == "data":
                        old.weight.data.add_(source.weight.data)
                    elif change == "inference mode":
                        with torch.inference_mode():
                            old.weight.copy_(source.weight)
                            old.bias.mul_(-1)
        if change == "there and back":
            features(tower.double().bfloat16(), clip.bfloat16())
            tower.float()
        ours = features(tower, clip)
        with cacher.paused():
            dense = features(tower, clip)
    torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("part", ["q_proj", "v_proj", "mlp.fc1"])
def test_weights_made_and_merged_in_inference_mode(part, make_tower, make_clip):
    clip = make_clip(6)
    with torch.inference_mode():
        tower = make_tower()
        with attach_cacher(tower, CacherConfig.paper(refresh_interval=100)) as cacher:
            tower(clip)
            for layer in tower.encoder.layers:
                weight = layer.get_submodule(part if "." in part else f"self_attn.{part}").weight
                weight.add_(torch.randn_like(weight[:, :2]) @ torch.randn_like(weight[:2]))
            # Not before the next reset: the references are still those of the old weights.
            cacher.reset()
            ours = [tower(clip).last_hidden_state for _ in range(2)]
        with attach_cacher(tower, CacherConfig.paper(refresh_interval=100)):
            expected = [tower(clip).last_hidden_state for _ in range(2)]
    for one, other in zip(ours, expected, strict=True):
        assert torch.equal(one, other)


def test_weights_made_in_inference_mode(make_tower, make_clip):
    clip = make_clip(3)
    with torch.inference_mode():
        tower = make_tower()
        dense = tower(clip).last_hidden_state
        with attach_cacher(tower, CacherConfig.paper(update_ratio=1.0)):
            ours = tower(clip).last_hidden_state
    torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-5)


def test_projections_without_bias(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(3)
    for layer in tower.encoder.layers:
        layer.self_attn.q_proj.bias = None
    tower.encoder.layers[0].self_attn.v_proj.bias = None
    dense = features(tower, clip)
    with attach_cacher(tower, CacherConfig.paper(update_ratio=1.0)):
        torch.testing.assert_close(features(tower, clip), dense, rtol=1e-5, atol=1e-5)


def test_a_layer_called_by_itself_is_dense(make_tower):
    tower, x = make_tower(), torch.randn(2, 36, 32)
    layer = tower.encoder.layers[0]
    with torch.no_grad():
        dense = layer(x, None)
        with attach_cacher(tower, CacherConfig.paper()) as cacher:
            assert torch.equal(layer(x, None), dense)
            assert cacher.stats.frames == 0


def test_hooks_see_every_layer(make_tower, make_clip):
    tower, seen = make_tower(), []
    for layer in tower.encoder.layers:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    with attach_cacher(tower, CacherConfig.paper()):
        for frame in make_clip(2):
            features(tower, frame[None])
    assert seen == [(1, 36, 32)] * 6


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("place", ["after", "before"])
def test_hooks_that_write_in_place_are_followed(make_tower, make_clip, mode, place):
    tower, clip = make_tower(), make_clip(6)
    first, second = tower.encoder.layers[:2]

    def change(how):
        if place == "after":
            return first.register_forward_hook(lambda module, inputs, output: how(output))
        return second.register_forward_pre_hook(
            lambda module, inputs: (how(inputs[0]), *inputs[1:])
        )

    outputs = []
    for how in (lambda tokens: tokens.flip(-1), lambda tokens: tokens.copy_(tokens.flip(-1))):
        hook = change(how)
        with mode(), attach_cacher(tower, CacherConfig.paper()):
            outputs.append(torch.cat([tower(frame[None]).last_hidden_state for frame in clip]))
        hook.remove()
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)


def test_what_an_attached_tower_cannot_do(make_tower, make_clip):
    tower, clip = make_tower(attention_dropout=0.1), make_clip(2)
    x = torch.randn(2, 36, 32)
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        with pytest.raises(ValueError, match="output_attentions must be False"):
            tower(clip, output_attentions=True)
        with pytest.raises(ValueError, match="attention_mask must be None"):
            tower.encoder(x, torch.ones(2, 1, 36, 36))
        with pytest.raises(ValueError, match=r"attention_mask must be None"):
            tower.encoder(inputs_embeds=x, attention_mask=torch.ones(2, 1, 36, 36))
        with pytest.raises(ValueError, match=r"shape \[frames, tokens, channels\].*\[36, 32\]"):
            tower.encoder(x[0])
        with pytest.raises(ValueError, match=r"dropout 0\.1: call eval"):
            tower.train()(clip)
        with pytest.raises(TypeError, match="but computes in float64"):
            tower.eval().double()(clip)
        tower.float()
        hook = tower.encoder.layers[0].register_forward_hook(lambda *_: tower(clip))
        with pytest.raises(RuntimeError, match="from inside its own forward"):
            tower(clip)
        hook.remove()
        assert cacher.stats.frames == 0
        assert tower.encoder(inputs_embeds=x).last_hidden_state.shape == x.shape


def test_a_layer_that_ran_on_no_reference_is_named(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(2)
    layers = tower.encoder.layers
    with attach_cacher(tower, CacherConfig.paper()), torch.no_grad():
        tower.encoder.layers = layers[:2]
        tower(clip[:1])
        tower.encoder.layers = layers
        with pytest.raises(RuntimeError, match="layer 2 of the tower was not run"):
            tower(clip[1:])


def test_it_runs_inside_a_compiled_model(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(4)
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        eager = features(tower, clip)
        cacher.reset()
        compiled = torch.compile(tower, backend="eager")
        torch.testing.assert_close(features(compiled, clip), eager, rtol=1e-5, atol=1e-5)
        with cacher.streams([1, 2, 1, 2]):
            features(compiled, clip)
        assert cacher.stats.frames == 12


def test_the_representation_says_what_it_is(make_tower):
    cacher = attach_cacher(make_tower(), CacherConfig.paper())
    assert repr(cacher) == (
        f"<Cacher of a SigLIP tower, 3 layers of 32, {CacherConfig.paper()}, 0 streams>"
    )
    cacher.detach()
    assert "detached" in repr(cacher)


def test_an_attention_replaced_by_another_patch_is_refused(make_tower):
    tower = make_tower()
    attention = tower.encoder.layers[1].self_attn
    plain = attention.forward
    attention.forward = lambda *args, **kwargs: plain(*args, **kwargs)
    text = "attention of the tower's layer 1 has a forward of its own"
    with pytest.raises(TypeError, match=text):
        attach_cacher(tower)


class _Adapter(nn.Linear):
    """A projection that computes more than its weight says."""

    def forward(self, tokens):
        return super().forward(tokens) + 1


def _adapt(projection):
    projection.__class__ = _Adapter


def _hook(projection):
    projection.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_adapt, "projection of the tower's layer 1 has a forward of its own, _Adapter's"),
        (_hook, "projection of the tower's layer 1 has forward hooks"),
    ],
)
def test_changes_of_a_fused_projection_are_refused(change, text):
    tower = shapes.TimmTower(**OWN).eval()
    change(tower.blocks[1].attn.qkv)
    with pytest.raises(TypeError, match=text):
        attach_cacher(tower)


def test_a_compiled_tower_is_one_tower(make_tower):
    tower = make_tower()
    with attach_cacher(torch.compile(tower)) as cacher:
        assert cacher.tower.encoder is tower.encoder


@pytest.mark.parametrize("what", ["reset", "detach"])
def test_streams_are_not_forgotten_inside_a_forward(what, make_tower, make_clip):
    tower = make_tower()
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        hook = tower.encoder.layers[0].register_forward_hook(
            lambda module, args, output: getattr(cacher, what)()
        )
        with pytest.raises(RuntimeError, match=f"{what} was called from inside"):
            tower(make_clip(1))
        hook.remove()
        tower(make_clip(1))
        assert cacher.stats.frames == 1


def test_no_forward_inside_a_forward_from_a_fresh_context_either(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(2)
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        hook = tower.encoder.layers[0].register_forward_hook(
            lambda module, args, output: contextvars.Context().run(tower, clip) and None
        )
        with pytest.raises(RuntimeError, match="called again from inside its own forward"):
            tower(clip)
        hook.remove()
        tower(clip)
        assert cacher.stats.frames == 2
