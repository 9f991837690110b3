"""What `stc bench` is made of, against plain statements: arithmetic, turns, towers, fidelity."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from stc_stream.cacher import CacherConfig, attach_cacher
from stc_stream.evaluate.bench import BenchConfig, TowerBench, engine, first_layers, fitting_layers
from stc_stream.evaluate.bench import plan as plan_module
from stc_stream.evaluate.bench.plan import turn
from stc_stream.evaluate.cost import CostModel
from stc_stream.evaluate.fidelity import FidelityTally, cosines, watch_layers
from stc_stream.evaluate.variants import ScheduledCacher, eager, graphed, shared_copy
from stc_stream.towers import read_tower
from stc_stream.towers.load import VisionModel, build_tower, load_tower
from stc_stream.towers.sizes import MODEL_SIZES, Packing, TowerSizes
from stc_stream.video.sample import sample_clip, synthetic_clip


@pytest.fixture
def tower(tiny_model: Path) -> VisionModel:
    return load_tower(str(tiny_model), device="cpu")


@pytest.fixture
def packed(seed: int) -> VisionModel:
    torch.manual_seed(seed)
    config = Qwen2VLVisionConfig(depth=2, embed_dim=32, num_heads=2, mlp_ratio=2, hidden_size=16)
    module = Qwen2VisionTransformerPretrainedModel(config).eval().requires_grad_(False)
    half = (0.5, 0.5, 0.5)
    cpu, packing = torch.device("cpu"), Packing(2, 2)
    return VisionModel(
        module, "tiny Qwen", False, 56, 14, 32, 2, half, half, cpu, torch.float32, 0, packing
    )


def selective_share(sizes: TowerSizes, ratio: float) -> float:
    """By hand: C² each for Q, K, V and the output, 2·C·I for the MLP, 2·T·C for attention.

    A selective frame does K for all tokens and the rest for k of them.
    """
    width, tokens = sizes.width, sizes.tokens
    rest = 3 * width**2 + 2 * width * sizes.mlp + 2 * tokens * width
    chosen = max(1, int(tokens * ratio))
    return (width**2 + rest * chosen / tokens) / (width**2 + rest)


def test_arithmetic_is_that_of_the_layers() -> None:
    with torch.device("meta"):
        module = MODEL_SIZES["siglip-so400m"].make(27)
    counted = CostModel.of(read_tower(module), 729)
    sizes = MODEL_SIZES["siglip-so400m"]
    for ratio in (0.1, 0.25, 0.5, 1.0):
        assert counted.selective_share(ratio) == pytest.approx(selective_share(sizes, ratio))
    cycle = (1 + 3 * selective_share(sizes, 0.25)) / 4
    assert counted.cycle_share(0.25, 4) == pytest.approx(cycle)
    assert counted.max_speedup(0.25) == pytest.approx(3.24, abs=0.005)
    assert counted.max_speedup(0.25, 4) == pytest.approx(1 / cycle)
    assert counted.selective_share(1.0) == 1.0
    per_token = 4 * 1152**2 + 2 * 1152 * 4304 + 2 * 729 * 1152
    assert counted.dense == 27 * 729 * per_token


def test_a_class_token_is_always_computed() -> None:
    with torch.device("meta"):
        module = MODEL_SIZES["clip-l"].make(1)
    counted = CostModel.of(read_tower(module), 577)
    keys, rest = 1024**2, 3 * 1024**2 + 2 * 1024 * 4096 + 2 * 577 * 1024
    share = (577 * keys + (1 + 57) * rest) / (577 * (keys + rest))
    assert counted.selective_share(0.1) == pytest.approx(share)


def test_fused_projections_are_counted_once(packed: VisionModel) -> None:
    counted = CostModel.of(read_tower(packed.module), 16)
    per_token = 4 * 32**2 + 2 * 32 * 64 + 2 * 16 * 32
    assert counted.dense == 2 * 16 * per_token
    assert counted.keys == 2 * 32**2


@pytest.mark.parametrize(("streams", "interval"), [(1, 2), (4, 2), (4, 4), (3, 4), (8, 4), (5, 3)])
def test_turns_are_those_of_a_staggered_cacher(
    tower: VisionModel, streams: int, interval: int, generator: torch.Generator
) -> None:
    pixels = torch.randn(streams, 3, 64, 64, generator=generator)
    config = CacherConfig.paper(refresh_interval=interval, stagger=True)
    seen = []
    with attach_cacher(tower.module, config) as cacher, cacher.streams(range(streams)):
        for _ in range(1 + 2 * interval):
            with cacher.record() as recording:
                tower.module(pixels)
            seen.append(frozenset(recording.layers[0].refreshed.nonzero().flatten().tolist()))
    # The first batch is all refreshes; from then on streams take turns.
    assert seen[0] == frozenset(range(streams))
    expected = [turn(streams, interval, batch) for batch in range(1, 1 + 2 * interval)]
    assert seen[1:] == expected
    sizes = sorted(map(len, expected[:interval]))
    config_ = BenchConfig(refresh_intervals=(interval,))
    assert sorted(config_.refreshes(streams, interval)) == sizes
    assert set(config_.mixes(streams)) == {0, streams, *sizes}


def test_frames_a_round_are_the_batches_that_are_timed(tower: VisionModel) -> None:
    counted = CostModel.of(read_tower(tower.module), 16)
    config = BenchConfig(update_ratios=(0.25,), refresh_intervals=(4,), streams=(4,))
    share = counted.selective_share(0.25)
    # Two dense sides, a refresh of all, none, and one of four.
    assert config.frames_a_round(counted, 2) == pytest.approx(12 + 4 * share + 1 + 3 * share)


def test_packed_frames_are_those_of_the_models_own_processor(
    packed: VisionModel, seed: int
) -> None:
    random = np.random.default_rng(seed)
    images = [random.integers(0, 256, (56, 56, 3), np.uint8) for _ in range(3)]
    half = [0.5, 0.5, 0.5]
    processor = Qwen2VLImageProcessor(
        do_resize=False, image_mean=half, image_std=half, patch_size=14, temporal_patch_size=2,
        merge_size=2,
    )  # fmt: skip
    theirs = processor(images=images, return_tensors="pt")
    ours = packed.batch(images)
    torch.testing.assert_close(ours["hidden_states"], theirs["pixel_values"], atol=1e-5, rtol=0)
    assert torch.equal(ours["grid_thw"], theirs["image_grid_thw"])


def test_a_packed_tower_is_timed(packed: VisionModel) -> None:
    config = BenchConfig((0.25, 0.5), (2, 3), (1, 3), rounds=1, compile=False)
    run = TowerBench(packed, config, sample_clip(7)).run()
    assert len(run.settings) == 8
    assert [each.fidelity.ages for each in run.fidelity] == [(0, 1, 2)] * 2
    assert run.complete


def test_fidelity_is_what_a_plain_statement_gives(tower: VisionModel) -> None:
    """By hand: a Cacher on one copy, hidden states of both, cosines a layer and an age."""
    clip = sample_clip(6)
    config = BenchConfig((0.25,), (3,), (1,), rounds=1, compile=False)
    (found,) = TowerBench(tower, config, clip).run().fidelity
    assert found.fidelity.frames == (2, 2, 2)
    copy = shared_copy(tower.module)
    rows: dict[int, list[list[float]]] = {}
    with attach_cacher(copy, CacherConfig.paper(0.25, 3)):
        for number, image in enumerate(clip.images):
            pixels = tower.batch([image])["pixel_values"]
            dense = tower.module(pixels, output_hidden_states=True)
            ours = copy(pixels, output_hidden_states=True)
            pairs = [
                *zip(ours.hidden_states[1:], dense.hidden_states[1:], strict=True),
                (ours.last_hidden_state, dense.last_hidden_state),
            ]
            own = [F.cosine_similarity(one, other, dim=-1).mean().item() for one, other in pairs]
            rows.setdefault(number % 3, []).append(own)
    expected = np.array([np.mean(rows[age], axis=0) for age in range(3)]).T
    found_rows = [*found.fidelity.layers, found.fidelity.features]
    np.testing.assert_allclose(found_rows, expected, atol=1e-6)


def test_a_tally_is_the_mean_of_each_age(seed: int) -> None:
    random = np.random.default_rng(seed)
    frames = [(int(random.integers(0, 3)), random.uniform(size=4)) for _ in range(30)]
    tally = FidelityTally()
    assert tally.result() is None
    for age, values in frames:
        tally.add(age, values[:3].tolist(), float(values[3]))
    result = tally.result()
    assert result is not None
    for place, age in enumerate(result.ages):
        own = np.array([values for other, values in frames if other == age])
        assert result.frames[place] == len(own)
        found = [*(row[place] for row in result.layers), result.features[place]]
        np.testing.assert_allclose(found, own.mean(0))
    tally.add(0, [0.5, float("nan"), 0.5], 0.5)
    result = tally.result()
    assert result is not None and result.layers[1][0] is None


def test_layers_are_watched_only_inside(tower: VisionModel, generator: torch.Generator) -> None:
    pixels = torch.randn(1, 3, 64, 64, generator=generator)
    read = read_tower(tower.module)
    with watch_layers(read) as layers:
        expected = tower.module(pixels, output_hidden_states=True).hidden_states[1]
        first, second = layers.take()
        assert torch.equal(first, expected)
        assert cosines([first, second], [first, -second]) == pytest.approx([1, -1])
        assert layers.take() == ()
    tower.module(pixels)
    assert layers.take() == ()


def test_a_copy_shares_the_weights_and_nothing_else(tower: VisionModel) -> None:
    copy = shared_copy(tower.module)
    pairs = zip(copy.parameters(), tower.module.parameters(), strict=True)
    assert all(one is other for one, other in pairs)
    ours = ScheduledCacher(tower, 0.25)
    assert "forward" not in vars(read_tower(tower.module).layers[0].module)
    assert "forward" in vars(ours.cacher.tower.layers[0].module)


class Repeats:
    """In place of CUDA graphs: does the work again into the same output."""

    def refusal(self, device: torch.device) -> str | None:
        return None

    def capture(self, work, inputs: Sequence[Tensor]):
        outputs = [output.clone() for output in work(inputs)]

        def replay() -> None:
            for output, again in zip(outputs, work(inputs), strict=True):
                output.copy_(again)

        return replay, outputs


def test_a_dense_graph_takes_new_inputs_and_its_outputs_can_be_kept(
    tower: VisionModel, generator: torch.Generator
) -> None:
    one, two = (torch.randn(2, 3, 64, 64, generator=generator) for _ in range(2))
    with torch.no_grad():
        plain = eager(tower.module)
        run = graphed(plain, {"pixel_values": one}, Repeats())
        first = run({"pixel_values": one})
        second = run({"pixel_values": two})
        torch.testing.assert_close(first, plain({"pixel_values": one}))
        torch.testing.assert_close(second, plain({"pixel_values": two}))


def test_on_a_gpu_all_sides_have_graphs(
    tower: VisionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_on_gpu", lambda tower: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr("stc_stream.evaluate.variants.CudaBackend", Repeats)
    monkeypatch.setattr("stc_stream.cacher.graphs.CudaBackend", Repeats)
    monkeypatch.setattr(engine, "compiled", eager)
    config = BenchConfig((0.25, 0.5), (2,), (1, 2), rounds=2)
    bench = TowerBench(tower, config, sample_clip(4))
    run = bench.run()
    sides = ["eager", "compiled", "in a CUDA graph", "compiled, in a CUDA graph"]
    assert [dense.variant for dense in run.dense] == 2 * sides
    assert all(dense.timing for dense in run.dense)
    assert [setting.graph for setting in run.settings] == 2 * [False, False, True, True]
    # Ours was replayed, not only run eagerly beside a graph.
    assert all(ours.cacher._graphs.replays > 0 for ours in bench._cachers if ours.graph)


def test_a_graph_that_cannot_be_captured_is_said(
    tower: VisionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refuses(Repeats):
        def capture(self, work, inputs):
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(engine, "_on_gpu", lambda tower: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr("stc_stream.evaluate.variants.CudaBackend", Refuses)
    monkeypatch.setattr("stc_stream.cacher.graphs.CudaBackend", Repeats)
    config = BenchConfig((0.5,), (2,), (1,), rounds=1, compile=False)
    notes = {
        each.variant: each.note for each in TowerBench(tower, config, sample_clip(4)).run().dense
    }
    assert notes["in a CUDA graph"].startswith("RuntimeError: operation not permitted")
    assert notes["compiled"] == "left out"


def test_the_first_layers_are_the_towers_own(
    tower: VisionModel, generator: torch.Generator
) -> None:
    pixels = torch.randn(1, 3, 64, 64, generator=generator)
    with watch_layers(read_tower(tower.module)) as layers:
        tower.module(pixels)
        expected = layers.take()[0]
    cut = first_layers(tower, 1)
    assert cut.layers == 1
    with watch_layers(read_tower(cut.module)) as layers:
        cut.module(pixels)
        (found,) = layers.take()
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="^layers must be 1 to 1 for .*, but is 2"):
        first_layers(cut, 2)


def test_as_many_layers_as_fit(tower: VisionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, config = sample_clip(1), BenchConfig()
    counted = CostModel.of(read_tower(tower.module), 16)
    rounds = config.frames_a_round(counted, 2) * (plan_module.FEWEST_ROUNDS + 1)
    for seconds, expected in ((0.0, 40), (1.0, 40), (2.0, 20), (4.0, 10), (1e9, 1)):
        # A frame of the whole tower, of which the probe has 2 layers of 40.
        frame = seconds * plan_module.SECONDS / rounds / 20
        monkeypatch.setattr(plan_module, "_frame_seconds", lambda *_, frame=frame: frame)
        assert fitting_layers(tower, 40, config, clip) == expected


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"update_ratios": ()}, "update_ratios must hold at least one value"),
        ({"update_ratios": (0.5, 0.0)}, r"update_ratio must be in \(0, 1\], but is 0.0"),
        ({"refresh_intervals": (1,)}, "refresh_interval must be at least 2 .*, but is 1"),
        ({"streams": (0,)}, "streams must be at least 1, but is 0"),
        ({"rounds": 0}, "rounds must be at least 1, but is 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BenchConfig(**settings)


def test_settings_are_sorted_and_said_once() -> None:
    assert BenchConfig(update_ratios=(0.5, 0.1, 0.5)).update_ratios == (0.1, 0.5)


@pytest.mark.parametrize(("name", "sizes"), [
    ("siglip-so400m", (729, 1152, 27, 0)), ("siglip-base", (576, 768, 12, 0)),
    ("clip-l", (576, 1024, 24, 1)), ("qwen2-vl", (1024, 1280, 32, 0)),
])  # fmt: skip
def test_towers_have_their_models_sizes(name: str, sizes: tuple[int, ...]) -> None:
    tower = build_tower(name, layers=1, device="cpu")
    assert (tower.tokens, tower.width, MODEL_SIZES[name].layers, tower.prefix_tokens) == sizes
    inputs = tower.batch(sample_clip(1).images)
    with torch.no_grad():
        tokens = tower.module(**inputs).last_hidden_state
    assert tower.patches_of(tokens).shape == (1, tower.tokens, tower.width)


def test_a_geometry_is_the_same_each_time_and_leaves_torchs_generator() -> None:
    before = torch.random.get_rng_state()
    one, other = (MODEL_SIZES["siglip-base"].build(1) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="^layers must be 1 to 12 for SigLIP-base.*, but is 13"):
        MODEL_SIZES["siglip-base"].build(13)


def test_the_synthetic_clip_drifts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    clip = sample_clip(5)
    assert "PyAV is not installed" in clip.name
    assert all(image.shape == (384, 384, 3) for image in clip.images)
    for one, other in itertools.pairwise(clip.images):
        a, b = one.astype(np.int64), other.astype(np.int64)
        assert np.abs(a - b).mean() > 0
        # A pixel on, it is the same scene but for the noise.
        assert np.abs(a[1:, 1:] - b[:-1, :-1]).mean() < 3
    assert all(map(np.array_equal, clip.images, synthetic_clip(5).images))
