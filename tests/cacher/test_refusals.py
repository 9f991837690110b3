"""What a tower with a Cacher can't do, or can't be: one line each, and the tower stays whole."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from towers import shapes
from towers.families import OWN

from stc_stream import CacherConfig, attach_cacher

COPIES = "can't be copied or pickled: detach the Cacher first"


def features(tower, clip):
    with torch.no_grad():
        return tower(clip).last_hidden_state


def patched(tower):
    return [name for name, module in tower.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize(
    ("do", "kind", "text"),
    [
        (lambda tower, x: pickle.dumps(tower), TypeError, COPIES),
        (lambda tower, x: pickle.dumps(tower.encoder.layers[1]), TypeError, COPIES),
        (lambda tower, x: torch.save(tower, io.BytesIO()), TypeError, COPIES),
        (lambda tower, x: copy.deepcopy(tower.embeddings), TypeError, COPIES),
        (
            lambda tower, x: torch.jit.trace(tower, x, strict=False),
            RuntimeError,
            r"torch\.jit\.trace can't record a tower with a Cacher.*detach the Cacher first",
        ),
        (
            lambda tower, x: torch.export.export(tower, (x,)),
            RuntimeError,
            r"torch\.export can't record a tower with a Cacher.*detach the Cacher first",
        ),
        (
            lambda tower, x: torch.export.export(tower, (x,), strict=True),
            Exception,
            "frames of a tower with a Cacher depend on those before.*detach the Cacher first",
        ),
        (
            lambda tower, x: copy.copy(tower).to("meta")(x.to("meta")),
            ValueError,
            "on the meta device, where nothing is computed: load its weights",
        ),
    ],
    ids=["pickle", "a layer", "save", "deepcopy", "trace", "export", "export strictly", "meta"],
)
@pytest.mark.filterwarnings("ignore")
def test_what_an_attached_tower_cannot_do(do, kind, text, make_tower, make_clip):
    tower, clip = make_tower(), make_clip(3)
    weights = copy.deepcopy(tower.state_dict())
    dense = features(tower, clip)
    with attach_cacher(tower, CacherConfig.paper(update_ratio=1.0)) as cacher:
        with torch.no_grad(), pytest.raises(kind, match=text):
            do(tower, clip)
        assert cacher.stats.frames == 0
        tower.to_empty(device="cpu") if tower.device.type == "meta" else None
        tower.load_state_dict(weights)
        tower.embeddings.position_ids.copy_(torch.arange(36)[None])
        torch.testing.assert_close(features(tower, clip), dense, rtol=1e-5, atol=1e-5)
        assert cacher.stats.frames == 3
    assert patched(tower) == []
    assert torch.equal(features(tower, clip), dense)


class LoraLinear(nn.Module):
    """An adapter, as peft wraps a linear module."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.lora_A, self.lora_B = nn.Linear(32, 4, False), nn.Linear(4, base.out_features, False)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class Passing(nn.Module):
    """A wrapper that passes attributes on, as peft's."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.model, name)


def adapted(tower):
    attention = tower.encoder.layers[2].self_attn
    attention.out_proj = LoraLinear(attention.out_proj)
    return Passing(Passing(tower))


def compiled_layer(tower):
    tower.encoder.layers[1] = torch.compile(tower.encoder.layers[1], backend="eager")
    return tower


def compiled_attention(tower):
    layer = tower.encoder.layers[1]
    layer.self_attn = torch.compile(layer.self_attn, backend="eager")
    return tower


def traced(tower):
    return torch.jit.trace(tower, torch.zeros(1, 3, 48, 48), strict=False)


def exported(tower):
    return torch.export.export(tower, (torch.zeros(1, 3, 48, 48),)).module()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            adapted,
            r": SiglipVisionModel \(model\.model\) has no torch\.nn\.Linear as self_attn\.out_proj "
            r"in layer 2, but an adapter around one: merge it first \(peft: merge_and_unload\(\)\)",
        ),
        (compiled_layer, r"SiglipEncoderLayer in layer 1 that torch\.compile has wrapped: attach"),
        (compiled_attention, r"SiglipAttention in layer 1 that torch\.compile has wrapped: attach"),
        (traced, "but is a TopLevelTracedModule, recorded from one: attach the Cacher to the orig"),
        (exported, "but is a .*, recorded from one: attach the Cacher to the original"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_have_a_cacher(change, text, make_tower):
    tower = make_tower()
    before = [name for name in patched(tower) if "layers.1" not in name]
    with torch.no_grad():
        model = change(tower)
    with pytest.raises(TypeError, match=text) as raised:
        attach_cacher(model)
    assert "\n" not in str(raised.value)
    assert str(raised.value).count("in layer") <= 1
    assert [name for name in patched(tower) if "layers.1" not in name] == before


def test_parts_may_be_compiled(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(3)
    for layer in tower.encoder.layers:
        layer.mlp = torch.compile(layer.mlp, backend="eager")
    tower.encoder.layers[0].compile(backend="eager")
    dense = features(tower, clip)
    with attach_cacher(tower, CacherConfig.paper(update_ratio=1.0)) as cacher:
        tower.encoder.layers[1].compile(backend="eager")
        torch.testing.assert_close(features(tower, clip), dense, rtol=1e-5, atol=1e-5)
        assert cacher.stats.frames == 3


@pytest.mark.parametrize(
    ("places", "text"),
    [([0, 1, 0], "layers 0, 2"), ([1, 1, 2], "layers 0, 1"), ([2, 2, 2], "layers 0, 1, 2")],
)
def test_one_layer_in_several_places(places, text, make_tower, make_clip):
    tower, clip = make_tower(), make_clip(6)
    own = list(tower.encoder.layers)
    tower.encoder.layers = nn.ModuleList(own[place] for place in places)
    with pytest.raises(TypeError, match=f"{text} of the tower are one module.*a copy of its own"):
        attach_cacher(tower)
    assert patched(tower) == []
    tower.encoder.layers = nn.ModuleList(copy.deepcopy(own[place]) for place in places)
    with attach_cacher(tower):
        features(tower, clip)


def test_layers_that_are_run_again(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(3)
    plain = tower.encoder.forward

    def twice(inputs_embeds, **more):
        return plain(plain(inputs_embeds, **more).last_hidden_state, **more)

    tower.encoder.forward = twice
    dense = features(tower, clip)
    with attach_cacher(tower) as cacher:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="layer 0 of the tower was called twice"):
                features(tower, clip)
        assert cacher.stats.frames == 0
    assert torch.equal(features(tower, clip), dense)


@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize("kept", [slice(5, None), slice(None, None, 2)], ids=["five", "half"])
def test_tokens_that_are_dropped_between_layers(kept, interval, make_tower, make_clip):
    tower, clip = make_tower(), make_clip(3)
    drop = tower.encoder.layers[0].register_forward_hook(
        lambda module, args, output: output[:, kept]
    )
    with attach_cacher(tower, CacherConfig(refresh_interval=interval)) as cacher:
        with pytest.raises(ValueError, match=r"layer 1 .* shape \[3, \d+, 32\], .* \[3, 36, 32\]"):
            features(tower, clip)
        drop.remove()
        ours = features(tower, clip)[0]
        assert cacher.stats.frames == 3
    assert patched(tower) == []
    torch.testing.assert_close(ours, features(tower, clip)[0])


@pytest.mark.parametrize("part", ["self_attn", "mlp", "layer_norm1"])
def test_layers_may_share_their_parts(part, make_tower, make_clip):
    tower, clip = make_tower(), make_clip(6)
    for layer in tower.encoder.layers:
        setattr(layer, part, getattr(tower.encoder.layers[0], part))
    apart = copy.deepcopy(tower)
    for layer in apart.encoder.layers:
        setattr(layer, part, copy.deepcopy(getattr(layer, part)))
    with attach_cacher(tower, CacherConfig.paper()), attach_cacher(apart, CacherConfig.paper()):
        for frame in clip:
            ours, expected = features(tower, frame[None]), features(apart, frame[None])
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"relative_bias": torch.zeros(4, 36, 36)}, "relative_bias, a Tensor"),
        ({"head_mask": [1.0, 0.0]}, "head_mask, a list"),
        ({"is_causal": True}, "is_causal, a bool"),
        ({"temperature": 0.0}, "temperature, a float"),
        ({"cu_seqlens": [0, 36]}, "cu_seqlens, a list"),
        ({"position_ids": torch.arange(36)}, "position_ids, a Tensor"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_an_argument_that_is_not_known_is_named(arguments, text, make_tower, make_clip):
    tower, clip = make_tower(), make_clip(4)

    def added(module, args, kwargs):
        return args, {**kwargs, **arguments}

    with attach_cacher(tower, CacherConfig.paper(refresh_interval=100)) as cacher:
        features(tower, clip[:2])
        hook = tower.encoder.layers[1].register_forward_pre_hook(added, with_kwargs=True)
        with pytest.raises(ValueError, match=f"layer 1 of the tower was called with {text}, which"):
            features(tower, clip[2:])
        hook.remove()
        features(tower, clip[2:])
        assert (cacher.stats.frames, cacher.stats.refreshes) == (4, 2)


def test_empty_and_known_arguments_are_no_matter(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(4)

    def added(module, args, kwargs):
        empty = {"head_mask": None, "window_size": (), "is_causal": False}
        return args, {**kwargs, **empty, "output_hidden_states": True, "max_seqlen": 36}

    with attach_cacher(tower) as cacher:
        expected = features(tower, clip)
        cacher.reset()
        for layer in tower.encoder.layers:
            layer.register_forward_pre_hook(added, with_kwargs=True)
        assert torch.equal(features(tower, clip), expected)


def test_windows_of_a_frame_are_no_frames(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(4)

    def cut(module, inputs, output):
        rows = output.unflatten(1, (2, 3, 2, 3)).transpose(2, 3)
        return rows.reshape(-1, 9, output.shape[-1])

    hook = tower.embeddings.register_forward_hook(cut)
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        with pytest.raises(ValueError, match=r"16 rows of 9 patches for 4 frames of 36: .*windows"):
            features(tower, clip)
        hook.remove()
        features(tower, clip)
        assert cacher.stats.frames == 4
        # Frames that were embedded one by one, or in other batches, are frames.
        embedded = torch.cat([tower.embeddings(frame[None]) for frame in clip]).detach()
        tower.encoder(embedded)
        assert cacher.stats.frames == 8


class Opaque(torch.Tensor):
    """A weight of a class of its own, which linear knows, but nothing that joins or cuts it."""

    unknown = (torch.cat, torch.Tensor.__getitem__)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in cls.unknown:
            raise NotImplementedError(f"{function} is not for {cls.__name__}")
        if function is nn.functional.linear:
            return function(args[0], args[1].as_subclass(torch.Tensor), *args[2:])
        return super().__torch_function__(function, types, args, kwargs or {})


class Rows(Opaque):
    """One that can be cut into rows."""

    unknown = (torch.cat,)


def quantize(linear, kind):
    weight = linear.weight.detach().as_subclass(kind)
    linear._parameters["weight"] = nn.Parameter(weight, requires_grad=False)


def test_weights_of_another_class(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(4)
    dense = features(tower, clip)
    for layer in tower.encoder.layers:
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            quantize(getattr(layer.self_attn, name), Opaque)
    with attach_cacher(tower, CacherConfig.paper(update_ratio=1.0)):
        torch.testing.assert_close(features(tower, clip), dense, rtol=1e-5, atol=1e-5)


def test_fused_weights_of_another_class(generator):
    tower = shapes.TimmTower(**OWN).eval()
    frames = torch.randn(3, 3, 40, 40, generator=generator)
    with torch.no_grad():
        dense = tower(frames)
        for block in tower.blocks:
            quantize(block.attn.qkv, Rows)
        with attach_cacher(tower, CacherConfig.paper(update_ratio=1.0)):
            torch.testing.assert_close(tower(frames), dense, rtol=1e-5, atol=1e-5)
    quantize(tower.blocks[1].attn.qkv, Opaque)
    with pytest.raises(TypeError, match=r"layer 1 has a weight of class Opaque that can't be cut"):
        attach_cacher(tower)
    assert patched(tower) == []
