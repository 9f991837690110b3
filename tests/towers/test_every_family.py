"""What holds of a Cacher on a tower of any family."""

from __future__ import annotations

import threading

import pytest
import torch
import transformers
from torch import nn
from towers.families import FAMILIES, PATCH, Frame, at, collects_by_swapping, joined

from stc_stream import CacherConfig, attach_cacher
from stc_stream.towers import FAMILIES as READERS
from stc_stream.towers import read_tower

STREAMS = ["door", "yard", "door", "door", "yard", "door"]

# Plain, packed with windows, fused projections, and states that another class collects.
SOME = ("SigLIP", "Qwen2.5-VL", "timm's shape", "LLaVA's CLIP")


@pytest.fixture
def frames(family, seed):
    """Return frames of two interleaved streams."""
    return family.frames(STREAMS, seed)


def assert_close(ours, expected):
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


def assert_identical(ours, expected):
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())


def test_one_family_reads_it(family, tower):
    read = read_tower(tower)
    assert (read.family, read.width, read.prefix_tokens, read.packed) == (
        family.reads,
        32,
        family.prefix,
        family.packed,
    )
    assert [layer.module for layer in read.layers] == family.layers_of(tower)
    readers = [
        name
        for module in tower.modules()
        for name, reader in READERS.items()
        if reader.resembles(module)
    ]
    assert readers == [family.reads]


LLAVA = [each for each in FAMILIES if each.name.startswith("LLaVA")]


@pytest.mark.parametrize("family", LLAVA, ids=lambda family: family.name)
def test_a_list_of_images_is_frames_of_one_stream(family, tower, frames):
    images = [frame.pixels for frame in frames]
    with torch.no_grad(), attach_cacher(tower, CacherConfig.paper()) as cacher:
        singly = torch.cat(tower(images))
        assert (cacher.stats.frames, cacher.stats.refreshes) == (6, 2)
        cacher.reset()
        batch = tower(torch.stack(images))
    torch.testing.assert_close(singly, batch, rtol=1e-5, atol=1e-5)


def test_the_self_check_computes_one_frame_of_a_first_batch(family, tower, frames):
    rows = []

    def count(module, args, kwargs):
        rows.append(next(iter((*args, *kwargs.values()))).shape[0])

    for layer in read_tower(tower).layers:
        layer.attention.register_forward_pre_hook(count, with_kwargs=True)
    with attach_cacher(tower, CacherConfig.paper()) as cacher, cacher.streams(STREAMS):
        family.run(tower, frames)
    assert set(rows) == {len(frames[0].pixels) if family.packed else 1}
    # LLaVA's own SigLIP leaves its last layer out.
    assert len(rows) in (2, 3)


def test_a_layer_that_computes_something_else_is_refused(family, tower, frames):
    def doubled(module, args, output):
        return (2 * output[0], *output[1:]) if isinstance(output, tuple) else 2 * output

    read_tower(tower).layers[1].attention.register_forward_hook(doubled)
    cacher = attach_cacher(tower, CacherConfig.paper())
    with cacher.streams(STREAMS), pytest.raises(TypeError, match="layer 1 .* computes something"):
        family.run(tower, frames)


@pytest.mark.parametrize("interval", [1, 3])
def test_everything_recomputed_is_dense(family, tower, frames, interval):
    dense = family.run(tower, frames)
    config = CacherConfig.paper(update_ratio=1.0, refresh_interval=interval)
    with attach_cacher(tower, config) as cacher:
        with cacher.streams(STREAMS):
            assert_close(family.run(tower, frames), dense)
        singly = []
        for frame, stream in zip(frames, STREAMS, strict=True):
            with cacher.streams([stream]):
                singly.append(family.run(tower, [frame]))
        assert_close(joined(singly), dense)
        with cacher.paused():
            assert_close(family.run(tower, frames), dense)


def test_detached_the_tower_is_bit_for_bit_as_it_was(family, tower, frames):
    def attributes():
        return {name: set(vars(module)) for name, module in tower.named_modules()}

    dense = family.run(tower, frames)
    before = attributes()
    state = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    with attach_cacher(tower, CacherConfig.paper()) as cacher, cacher.streams(STREAMS):
        ours = family.run(tower, frames)
        assert list(tower.state_dict()) == list(state)
        assert any(not torch.equal(ours[name], dense[name]) for name in dense)
    assert attributes() == before
    assert_identical(tower.state_dict(), state)
    assert_identical(family.run(tower, frames), dense)


def test_two_towers_at_once(family, tower, frames, seed):
    other = family.tower(seed + 1)

    def alone(one):
        with attach_cacher(one, CacherConfig.paper()):
            return [family.run(one, [frame]) for frame in frames[::2]]

    expected = zip(alone(tower), alone(other), strict=True)
    with (
        attach_cacher(tower, CacherConfig.paper()) as first,
        attach_cacher(other, CacherConfig.paper()) as second,
    ):
        for frame, (one, two) in zip(frames[::2], expected, strict=True):
            assert_identical(family.run(tower, [frame]), one)
            assert_identical(family.run(other, [frame]), two)
        assert first.stats.frames == second.stats.frames == 3


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(each, id=each.name, marks=() if each.name in SOME else pytest.mark.full)
        for each in FAMILIES
    ],
    indirect=True,
)
def test_sixteen_threads_with_a_stream_each(family, tower, seed):
    if family.name == "LLaVA's CLIP" and collects_by_swapping():
        pytest.skip(f"transformers {transformers.__version__} collects states in one thread only")
    threads, length = 16, 3
    clips = [family.frames(["door"] * length, seed + number) for number in range(threads)]
    config = CacherConfig.paper(refresh_interval=3)
    expected = []
    for clip in clips:
        with attach_cacher(tower, config):
            expected.append([family.run(tower, [frame], states=False) for frame in clip])
    found: dict[int, list] = {}
    together = threading.Barrier(threads)

    def work(number):
        together.wait()
        with cacher.streams([number]):
            found[number] = [family.run(tower, [frame], states=False) for frame in clips[number]]

    with attach_cacher(tower, config) as cacher:
        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        stats = cacher.stats
    assert (stats.frames, stats.refreshes, stats.streams) == (48, 16, 16)
    for number, outputs in enumerate(expected):
        for ours, alone in zip(found[number], outputs, strict=True):
            assert_identical(ours, alone)


def test_the_prefix_is_always_recomputed(family, tower, frames):
    config = CacherConfig.paper(update_ratio=0.2, refresh_interval=6)
    with attach_cacher(tower, config) as cacher, cacher.record() as recording:
        with cacher.streams(STREAMS):
            family.run(tower, frames)
        patches = cacher.config.updated_tokens(
            recording.layers[0].recomputed.shape[1] - family.prefix
        )
    assert len(recording) == len(family.layers_of(tower))
    selective = [2, 3, 4, 5]
    for layer in recording:
        assert layer.refreshed.tolist() == [row not in selective for row in range(6)]
        assert layer.recomputed[:, : family.prefix].all()
        assert (layer.recomputed[selective].sum(1) == family.prefix + patches).all()
        assert layer.similarity()[selective, : family.prefix].isnan().all()
        assert layer.similarity()[selective, family.prefix :].isfinite().all()


def test_a_frame_that_changed_is_refreshed(family, tower, seed):
    same, cut = family.frames(["door"], seed)[0], family.frames(["door"], seed + 1)[0]
    with attach_cacher(tower, CacherConfig(refresh_on_change=0.5)) as cacher:
        for frame in (same, same, cut, cut):
            ours = family.run(tower, [frame])
        assert (cacher.stats.refreshes, cacher.stats.changes) == (2, 1)
    assert_close(ours, family.run(tower, [cut]))


def test_bfloat16(family, tower, frames):
    tower.bfloat16()
    dense = family.run(tower, frames)
    with (
        attach_cacher(tower, CacherConfig.paper(update_ratio=1.0)) as cacher,
        cacher.streams(STREAMS),
    ):
        for name, ours in family.run(tower, frames).items():
            assert ours.dtype == dense[name].dtype
            error = (ours.float() - dense[name].float()).norm() / dense[name].float().norm()
            assert error < 0.05, name
    with attach_cacher(tower, CacherConfig.paper()) as cacher, cacher.streams(STREAMS):
        assert all(ours.isfinite().all() for ours in family.run(tower, frames).values())


def test_eager_attention(family, tower, frames):
    dense = family.run(tower, frames)
    for module in tower.modules():
        if hasattr(module, "set_attn_implementation"):
            module.set_attn_implementation("eager")
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    assert_close(family.run(tower, frames), dense)
    with (
        attach_cacher(tower, CacherConfig.paper(update_ratio=1.0)) as cacher,
        cacher.streams(STREAMS),
    ):
        assert_close(family.run(tower, frames), dense)


def test_compiled_it_is_one_tower(family, tower, frames):
    read = read_tower(torch.compile(tower))
    assert read.path.startswith("_orig_mod")
    assert read.encoder is read_tower(tower).encoder


class Model(nn.Module):
    """A model around a tower."""

    def __init__(self, tower):
        super().__init__()
        self.tower = tower

    def forward(self, *args, **kwargs):
        return self.tower(*args, **kwargs)

    def forward_intermediates(self, pixels):
        return self.tower.forward_intermediates(pixels)


def test_inside_a_compiled_model(family, tower, frames):
    with attach_cacher(tower, CacherConfig.paper()) as cacher, cacher.streams(STREAMS):
        eager = family.run(tower, frames, states=False)
        cacher.reset()
        compiled = torch.compile(Model(tower), backend="eager")
        assert_close(family.run(compiled, frames, states=False), eager)
        assert cacher.stats.frames == 12


@pytest.mark.parametrize(
    "family", [each for each in FAMILIES if each.call is None], ids=lambda family: family.name
)
def test_attention_maps_are_refused(family, tower, frames):
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        with pytest.raises(ValueError, match="output_attentions must be False"):
            family.run(tower, frames, states=False, output_attentions=True)
        assert cacher.stats.frames == 0


@pytest.mark.parametrize("by", ["name", "position"])
def test_a_mask_that_only_the_layers_see_is_refused(family, tower, frames, by):
    def masked(module, args, kwargs):
        mask = torch.ones(1, dtype=torch.bool)
        if by == "position":
            return (args[0], mask), {**kwargs}
        return args[:1], {**kwargs, "attention_mask": mask}

    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        hook = family.layers_of(tower)[1].register_forward_pre_hook(masked, with_kwargs=True)
        with pytest.raises(
            ValueError, match="attention mask .* must be None|called with argument 1, a Tensor"
        ):
            family.run(tower, frames[:1], states=False)
        hook.remove()
        family.run(tower, frames[:1], states=False)
        assert cacher.stats.frames == 1


def test_dropout_in_training_is_refused(family, tower, frames):
    layer, settings = family.layers_of(tower)[1], []
    for module in layer.modules():
        for name in ("p", "dropout", "attention_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.25)
                settings.append(name)
    assert settings
    attach_cacher(tower, CacherConfig.paper())
    family.run(tower, frames[:1])
    tower.train()
    with pytest.raises(ValueError, match=r"layer 1 is in training mode with dropout 0\.25"):
        family.run(tower, frames[2:3])


def test_a_missing_part_is_named(family, tower):
    del family.layers_of(tower)[1].mlp
    with pytest.raises(
        TypeError, match=rf"has no mlp in layer 1.*that can be read: .*{family.reads}"
    ):
        read_tower(tower)


def test_projections_must_be_plain(family, tower):
    layer = family.layers_of(tower)[0]
    path = next(path for path in family.key if at(layer, path, "mlp") is not layer.mlp)
    parent, _, name = path.rpartition(".")
    setattr(at(layer, parent), name, nn.Identity())
    with pytest.raises(TypeError, match=r"has no torch\.nn\.Linear as [\w.]+ in layer 0"):
        read_tower(tower)


@pytest.mark.parametrize("inside", ["layer", "attention"])
def test_weights_that_nobody_reads_are_named(family, tower, inside):
    layer = family.layers_of(tower)[2 if family.name != "LLaVA's SigLIP" else 1]
    parent = layer if inside == "layer" else at(layer, "self_attn", "attention", "attn")
    parent.adapter = nn.Linear(32, 32)
    with pytest.raises(TypeError, match=r"has weights that are not read: adapter in layer \d"):
        read_tower(tower)


def test_a_tower_without_layers(family, tower):
    layers = at(tower, *family.layers)
    del layers[:]
    with pytest.raises(TypeError, match="has no layers"):
        read_tower(tower)


ANY_SIZE = [each for each in FAMILIES if each.packed or each.reads in ("DINOv2", "DINOv3")]


@pytest.mark.parametrize("family", ANY_SIZE, ids=lambda family: family.name)
def test_frames_of_another_size_start_a_new_reference(family, tower, seed):
    first, second = (family.frames([name], seed)[0] for name in ("door", "hall"))
    if not family.packed:
        second = Frame(torch.randn(3, 4 * PATCH, 6 * PATCH), second.grid)
    dense = [family.run(tower, [frame]) for frame in (first, second)]
    with attach_cacher(tower, CacherConfig.paper()) as cacher:
        for frame, expected in zip((first, second), dense, strict=True):
            assert_close(family.run(tower, [frame]), expected)
        assert (cacher.stats.refreshes, cacher.stats.restarts) == (2, 1)
