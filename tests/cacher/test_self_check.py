"""The self-check: a tower that computes something else than its parts say is refused at once."""

from __future__ import annotations

import copy
import functools
import threading
from contextlib import nullcontext

import pytest
import torch
from cacher.conftest import Repeats
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, CLIPVisionConfig, CLIPVisionModel
from transformers.models.siglip import modeling_siglip

from stc_stream import CacherConfig, attach_cacher
from stc_stream.cacher.call import FramePlace, LayerCall
from stc_stream.cacher.graphs import GraphStore
from stc_stream.cacher.selfcheck import difference


def features(tower, clip):
    with torch.no_grad():
        return tower(clip).last_hidden_state


def patched(tower):
    return [name for name, module in tower.named_modules() if "forward" in vars(module)]


class ScaledLayer(modeling_siglip.SiglipEncoderLayer):
    def forward(self, hidden_states, *args, **kwargs):
        return hidden_states + 0.5 * (
            super().forward(hidden_states, *args, **kwargs) - hidden_states
        )


class PooledLayer(modeling_siglip.SiglipEncoderLayer):
    def forward(self, hidden_states, *args, **kwargs):
        return super().forward(hidden_states, *args, **kwargs).unflatten(1, (-1, 2)).mean(2)


class TupleLayer(modeling_siglip.SiglipEncoderLayer):
    def forward(self, *args, **kwargs):
        return (super().forward(*args, **kwargs),)


class SinkAttention(modeling_siglip.SiglipAttention):
    def forward(self, hidden_states, *args, **kwargs):
        return super().forward(torch.cat([hidden_states, hidden_states[:, :1]], 1), *args)[0][
            :, :-1
        ], None


def nearby_tokens(module, query, key, value, mask, scaling=None, **more):
    """Attend to tokens at most five places away."""
    place = torch.arange(query.shape[2])
    near = (place[:, None] - place).abs() <= 5
    context = functional.scaled_dot_product_attention(query, key, value, near, scale=scaling)
    return context.transpose(1, 2).contiguous(), None


def hook_before_attention(tower, patch):
    def double(module, args, kwargs):
        return args, {
            name: 2 * each if name == "hidden_states" else each for name, each in kwargs.items()
        }

    tower.encoder.layers[2].self_attn.register_forward_pre_hook(double, with_kwargs=True)


def hook_that_drops_a_token(tower, patch):
    def drop(module, args, output):
        output[0][:, 3] = 0

    tower.encoder.layers[1].self_attn.register_forward_hook(drop)


def layer_class_patched(tower, patch):
    own = modeling_siglip.SiglipEncoderLayer.forward
    patch.setattr(
        modeling_siglip.SiglipEncoderLayer,
        "forward",
        lambda self, x, *args, **kwargs: own(self, x, *args, **kwargs).flip(1),
    )


def attention_class_changed(tower, patch):
    tower.encoder.layers[0].self_attn.__class__ = SinkAttention


def layer_class_changed(tower, patch):
    tower.encoder.layers[1].__class__ = ScaledLayer


def layer_that_pools(tower, patch):
    tower.encoder.layers[2].__class__ = PooledLayer


def layer_that_returns_a_tuple(tower, patch):
    tower.encoder.layers[2].__class__ = TupleLayer


def attention_function(tower, patch):
    AttentionInterface.register("nearby", nearby_tokens)
    tower.set_attn_implementation("nearby")


CHANGES = [
    (hook_before_attention, r"layer 2 .* differs .* self_attn has forward hooks"),
    (hook_that_drops_a_token, r"layer 1 .* differs .* self_attn has forward hooks"),
    (layer_class_patched, r"layer 0 .* differs .* forward of SiglipEncoderLayer .* was replaced"),
    (attention_class_changed, r"layer 0 .* differs .* the class of its attention was changed"),
    (layer_class_changed, r"layer 1 .* differs .* its class was changed"),
    (layer_that_pools, r"layer 2 .* shape \[1, 18, 32\], not \[1, 36, 32\].* class was changed"),
    (layer_that_returns_a_tuple, r"layer 2 .* returns a tuple.* class was changed"),
    (attention_function, r'layer 0 .* differs .* registered as "nearby"'),
]


@pytest.mark.parametrize(
    ("change", "text"), CHANGES, ids=lambda each: getattr(each, "__name__", "")
)
def test_what_changes_numbers_is_refused(change, text, make_tower, make_clip, monkeypatch):
    tower, clip = make_tower(), make_clip(4)
    change(tower, monkeypatch)
    runs = change is not layer_that_returns_a_tuple
    dense = features(tower, clip) if runs else None
    cacher = attach_cacher(tower)
    with pytest.raises(TypeError, match=text):
        features(tower, clip)
    assert patched(tower) == []
    assert "detached" in repr(cacher)
    assert (cacher.stats.frames, cacher.stats.streams, cacher.stats.bytes) == (0, 0, 0)
    if runs:
        assert torch.equal(features(tower, clip), dense)
    cacher.detach()
    with pytest.raises(TypeError, match=text), attach_cacher(tower):
        features(tower, clip)
    assert patched(tower) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "autocast"], ids=str)
def test_in_every_precision(dtype, make_tower, make_clip):
    tower, clip = make_tower(), make_clip(4)
    amp = dtype == "autocast"
    if not amp:
        tower, clip = tower.to(dtype), clip.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        with attach_cacher(tower, CacherConfig.paper()) as cacher:
            features(tower, clip)
            assert cacher.stats.frames == 4
        tower.encoder.layers[1].self_attn.register_forward_hook(lambda m, i, o: (o[0] / 2, None))
        with pytest.raises(TypeError, match="layer 1"), attach_cacher(tower):
            features(tower, clip)


class ReversedNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x).flip(-1)


@pytest.mark.parametrize("patch", ["class", "global hook"])
def test_norms_that_are_patched_everywhere_are_called(patch, make_tower, make_clip, monkeypatch):
    tower, clip = make_tower(), make_clip(3)
    towers = (tower, copy.deepcopy(tower))
    for module in towers[0].modules():
        if type(module) is nn.LayerNorm:
            module.__class__ = ReversedNorm
    with attach_cacher(towers[0], CacherConfig.paper()):
        expected = [features(towers[0], frames) for frames in clip.split([1, 2])]
    own = nn.LayerNorm.forward
    hook = None
    if patch == "class":
        wrapped = functools.wraps(own)(lambda self, x: own(self, x).flip(-1))
        monkeypatch.setattr(nn.LayerNorm, "forward", wrapped)
    else:
        hook = nn.modules.module.register_module_forward_hook(
            lambda module, args, out: out.flip(-1) if type(module) is nn.LayerNorm else None
        )
    try:
        with attach_cacher(towers[1], CacherConfig.paper()):
            ours = [features(towers[1], frames) for frames in clip.split([1, 2])]
    finally:
        if hook is not None:
            hook.remove()
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "autocast"], ids=str)
def test_eager_attention_that_is_imprecise_is_no_change(dtype, changed, make_tower, make_clip):
    tower, clip = make_tower(attn_implementation="eager"), make_clip(4)
    with torch.no_grad():
        for layer in tower.encoder.layers:
            # Logits of several hundred, which the eager attention rounds to units.
            layer.self_attn.q_proj.weight.mul_(8)
            layer.self_attn.k_proj.weight.mul_(8)
    if dtype != "autocast":
        tower, clip = tower.to(dtype), clip.to(dtype)
    if changed:
        tower.encoder.layers[1].self_attn.register_forward_hook(
            lambda module, args, output: (-output[0], None)
        )
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast")
    refused = pytest.raises(TypeError, match="layer 1") if changed else nullcontext()
    with attach_cacher(tower) as cacher, autocast, refused:
        features(tower, clip)
    assert cacher.stats.frames == (0 if changed else 4)
    assert {weight.dtype for weight in tower.parameters()} == {clip.dtype}


def test_what_is_called_may_be_changed(make_tower, make_clip, monkeypatch):
    tower, clip = make_tower(), make_clip(6)
    layers = tower.encoder.layers
    layers[0].self_attn.v_proj.register_forward_hook(lambda m, i, o: o * 2)
    layers[0].self_attn.q_proj.__class__ = type(
        "Adapted", (nn.Linear,), {"forward": lambda self, x: nn.Linear.forward(self, x).tanh()}
    )
    layers[1].self_attn.out_proj.register_forward_pre_hook(lambda m, i: (i[0] + 1,))
    layers[1].layer_norm1.register_forward_hook(lambda m, i, o: o.clamp(min=-1))
    layers[2].mlp.forward = lambda x: x.abs()
    monkeypatch.setattr(modeling_siglip.SiglipMLP, "forward", lambda self, x: self.fc2(self.fc1(x)))
    dense = features(tower, clip)
    with attach_cacher(tower, CacherConfig.paper(update_ratio=1.0)) as cacher:
        torch.testing.assert_close(features(tower, clip), dense, rtol=1e-5, atol=1e-5)
        assert cacher.stats.frames == 6


def test_each_layers_own_forward_runs_once(make_tower, make_clip):
    tower, clip, called = make_tower(), make_clip(3), []
    for number, layer in enumerate(tower.encoder.layers):
        layer.self_attn.register_forward_hook(lambda m, i, o, number=number: called.append(number))
    with attach_cacher(tower) as cacher:
        with cacher.paused():
            features(tower, clip)
        assert called == [0, 1, 2]
        for _ in range(4):
            features(tower, clip)
            assert called == [0, 1, 2, 0, 1, 2]
        cacher.reset()
        features(tower, clip.half().float())
        assert called == [0, 1, 2, 0, 1, 2]
        assert cacher.stats.frames == 15


def test_one_frame_of_a_first_batch_is_computed_besides(make_tower, make_clip):
    tower, clip, shapes = make_tower(), make_clip(16), []
    for layer in tower.encoder.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda m, args, kwargs: shapes.append(tuple(kwargs["hidden_states"].shape)),
            with_kwargs=True,
        )
    with attach_cacher(tower, CacherConfig.paper()):
        features(tower, clip)
    assert shapes == [(1, 36, 32)] * 3


@pytest.mark.parametrize("place", range(4))
def test_the_frame_that_shows_a_change_is_compared(place, make_tower, make_clip):
    tower, clip = make_tower(), torch.zeros(4, 3, 48, 48)
    with torch.no_grad():
        # All tokens of a black frame are the same then, in whatever order they are.
        tower.embeddings.position_embedding.weight.zero_()
    clip[place] = make_clip(1)[0]
    clip[(place + 1) % 4, 0, 9, 9] = torch.nan
    tower.encoder.layers[1].self_attn.register_forward_hook(
        lambda module, args, output: (output[0].flip(1), *output[1:])
    )
    names = [f"camera {number}" for number in range(4)]
    cacher = attach_cacher(tower)
    with cacher.streams(names), pytest.raises(TypeError, match="layer 1"):
        features(tower, clip)


@pytest.mark.parametrize("packed", [False, True])
def test_a_call_is_cut_down_to_one_frame(packed, generator):
    def table(*shape):
        return torch.randn(*shape, generator=generator)

    hidden, frame = table(3, 4, 8), FramePlace(slice(1, 2), 0, 4)
    segments = None
    if packed:
        hidden, frame = hidden.flatten(0, 1), FramePlace(slice(4, 8), 4, 4)
        segments = torch.tensor([0, 2, 4, 6, 8, 12], dtype=torch.int32)

    def call(cos, sin):
        given = {"position_embeddings": (cos, sin), "cu_seqlens": segments, "return_dict": True}
        return LayerCall.read(0, ("hidden_states",), (hidden,), given)

    if packed:
        shared, own, odd = [(4, 6)], [(12, 6), (1, 12, 6)], [(3, 6)]
    else:
        shared, own, odd = [(4, 6), (3, 6), (1, 4, 6)], [(3, 4, 6), (3, 1, 4, 6)], [(12, 6)]
    for shape in (*shared, *own):
        cos, sin = table(*shape), table(*shape)
        cut = call(cos, sin).of_frame(frame)
        (tokens,), given = cut.again(lambda *args, **kwargs: (args, kwargs), cut.hidden)
        assert torch.equal(tokens, hidden[frame.rows])
        for one, other in zip(given["position_embeddings"], (cos, sin), strict=True):
            expected = other
            if shape in own:
                expected = other[:, 4:8] if len(shape) == 3 and packed else other[frame.rows]
            assert torch.equal(one, expected)
        assert given["return_dict"] is True
        if packed:
            assert given["cu_seqlens"].tolist() == [0, 2, 4]
            assert given["cu_seqlens"].dtype == torch.int32
    for shape in odd:
        assert call(table(*shape), table(*shape)).of_frame(frame) is None


def test_a_layer_whose_call_cannot_be_cut_is_compared_whole(make_tower, make_clip):
    tower, clip, rows = make_tower(), make_clip(4), []

    def rows_of_all(module, args, kwargs):
        odd = torch.zeros(4 * 36, 8)
        return args, {**kwargs, "position_embeddings": (odd + 1, odd)}

    def without(module, args, kwargs):
        kwargs.pop("position_embeddings", None)
        rows.append(kwargs["hidden_states"].shape[0])
        return args, kwargs

    for layer in tower.encoder.layers:
        layer.register_forward_pre_hook(rows_of_all, with_kwargs=True)
        layer.self_attn.register_forward_pre_hook(without, with_kwargs=True)
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        features(tower, clip)
        assert (rows, cacher.stats.frames) == ([4] * 3, 4)
    tower.encoder.layers[1].self_attn.register_forward_hook(lambda m, i, o: (o[0] / 2, None))
    with pytest.raises(TypeError, match="layer 1"), attach_cacher(tower):
        features(tower, clip)


def test_switched_off_nothing_is_compared(make_tower, make_clip):
    tower, clip, called = make_tower(), make_clip(3), []
    tower.encoder.layers[1].self_attn.register_forward_hook(lambda m, i, o: called.append(1))
    with attach_cacher(tower, CacherConfig(self_check=False)) as cacher:
        features(tower, clip)
        assert cacher.stats.frames == 3
    assert called == []


def halved(layer):
    return layer.self_attn.register_forward_hook(lambda m, i, o: (o[0] / 2, *o[1:]))


def test_a_frame_that_is_not_finite_tells_nothing(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(3)
    halved(tower.encoder.layers[1])
    broken = clip.clone()
    broken[:, 0, 9, 9] = torch.nan
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        features(tower, broken)
        assert cacher.stats.rejected == 3
        with cacher.streams(["broken", "fine"]), pytest.raises(TypeError, match="layer 1"):
            features(tower, torch.stack([broken[0], clip[1]]))


def test_a_forward_that_failed_is_checked_further(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(4)
    halved(tower.encoder.layers[2])

    def fail(module, inputs):
        raise ZeroDivisionError

    config = CacherConfig.paper(refresh_interval=100, cuda_graph=True)
    with attach_cacher(tower, config) as cacher:
        cacher._graphs = GraphStore(Repeats())
        hook = tower.encoder.layers[1].register_forward_pre_hook(fail)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                features(tower, clip[:1])
        hook.remove()
        with pytest.raises(TypeError, match="layer 2"):
            features(tower, clip[:1])
    assert patched(tower) == []


def test_threads_that_come_first_together(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(1)
    halved(tower.encoder.layers[1])
    dense = features(tower, clip)
    together, refused, outputs = threading.Barrier(6), [], []

    def work():
        together.wait()
        try:
            outputs.append(features(tower, clip))
        except TypeError as error:
            refused.append(str(error))

    attach_cacher(tower)
    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1
    assert len(outputs) == 5
    assert all(torch.equal(output, dense) for output in outputs)


def test_what_transformers_leaves_in_a_tower_is_no_change(make_tower, make_clip):
    tower, clip = make_tower(attn_implementation="eager"), make_clip(3)
    with torch.no_grad():
        states = tower(clip, output_hidden_states=True, output_attentions=True).hidden_states
        with attach_cacher(tower, CacherConfig.paper(update_ratio=1.0)):
            ours = tower(clip, output_hidden_states=True).hidden_states
    assert len(ours) == len(states) == 4
    for one, other in zip(ours, states, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_class_token_alone(seed, generator):
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = CLIPVisionConfig(**shape, num_hidden_layers=2, image_size=160, patch_size=8)
    tower = CLIPVisionModel(config).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))

    def first_only(module, inputs, output):
        return torch.cat([2 * output[0][:, :1], output[0][:, 1:]], 1), *output[1:]

    frame = torch.randn(1, 3, 160, 160, generator=generator)
    with attach_cacher(tower):
        features(tower, frame)
    tower.encoder.layers[1].self_attn.register_forward_hook(first_only)
    with pytest.raises(TypeError, match="layer 1"), attach_cacher(tower):
        features(tower, frame)


def test_the_difference_is_a_share_of_what_is_added(generator):
    x = torch.randn(3, 9, 16, generator=generator)
    x[:, :, 0] += 1e4
    added = torch.randn(3, 9, 16, generator=generator)
    # More than is added on average, so that its own is the scale.
    added[1, 4] *= 3
    dense = x + added
    assert difference(x, dense, dense.clone(), torch.float32) == 0
    own = dense.clone()
    own[1, 4, 1:] += 0.3 * added[1, 4, 1:].square().mean().sqrt()
    assert difference(x, dense, own, torch.float32) == pytest.approx(0.3, rel=0.25)
    # What bfloat16 makes of a sum with large tokens is no difference.
    low = x.bfloat16()
    rounded = low + added.bfloat16()
    twice = ((low + 0.5 * added.bfloat16()) + 0.5 * added.bfloat16()).bfloat16()
    assert difference(low, rounded, twice, torch.bfloat16) < 0.05
    own[1] = torch.nan
    assert difference(x, dense, own, torch.float32) > 1e30
    dense[1] = torch.inf
    assert difference(x, dense, own, torch.float32) == 0
    assert difference(x, dense * torch.nan, own, torch.float32) is None
    assert difference(x, x, x.clone(), torch.float32) == 0
