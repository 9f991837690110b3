"""A model dense and by several methods side by side, against each of them run alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

from stc_stream.cacher import CacherConfig, attach_cacher
from stc_stream.evaluate.frames import FrameComparison, MethodTower
from stc_stream.evaluate.method import Method
from stc_stream.evaluate.methods import read_method
from stc_stream.evaluate.timing import WallClock
from stc_stream.evaluate.variants import shared_copy
from stc_stream.towers.load import VisionModel

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
}
HALF = (0.5, 0.5, 0.5)
CPU = torch.device("cpu")


@pytest.fixture
def model(seed: int) -> VisionModel:
    torch.manual_seed(seed)
    module = SiglipVisionModel(SiglipVisionConfig(**TINY, vision_use_head=False))
    module = module.eval().requires_grad_(False)
    return VisionModel(module, "tiny", False, 64, 16, 32, 3, HALF, HALF, CPU, torch.float32)


def clip(frames: int, generator: torch.Generator) -> list[dict[str, Tensor]]:
    """Return frames that change a little from one to the next."""
    scene = torch.randn(1, 3, 64, 64, generator=generator)
    changes = torch.randn(frames, 1, 3, 64, 64, generator=generator)
    return [{"pixel_values": scene + 0.3 * change} for change in changes]


def test_methods_side_by_side_do_what_each_does_alone(
    model: VisionModel, generator: torch.Generator
) -> None:
    frames = clip(7, generator)
    config = CacherConfig.paper(0.25, 3)
    methods = [Method("stc", config), *map(read_method, ("skip:refresh_interval=2", "dense"))]
    with FrameComparison(model, methods, layers=True) as comparison:
        comparison.warm_up(frames[0])
        found = [comparison.step(inputs) for inputs in frames]
        fidelity = comparison.fidelity
    copy = shared_copy(model.module)
    held = None
    rows: dict[int, list[list[float]]] = {}
    with attach_cacher(copy, config), torch.inference_mode():
        for number, (inputs, each) in enumerate(zip(frames, found, strict=True)):
            dense = model.module(**inputs, output_hidden_states=True)
            own = copy(**inputs, output_hidden_states=True)
            held = dense.last_hidden_state if number % 2 == 0 else held
            expected = [own.last_hidden_state, held, dense.last_hidden_state]
            torch.testing.assert_close(each.dense, dense.last_hidden_state)
            for run, tokens in zip(each.runs, expected, strict=True):
                torch.testing.assert_close(run.features, tokens, rtol=1e-5, atol=1e-5)
                cosine = torch.cosine_similarity(tokens[0], each.dense[0], dim=-1)
                torch.testing.assert_close(run.cosine, cosine, rtol=1e-5, atol=1e-5)
            stc, skip, plain = each.runs
            assert [run.age for run in each.runs] == [number % 3, number % 2, 0]
            assert [run.whole for run in each.runs] == [number % 3 == 0, number % 2 == 0, True]
            share = 1.0 if stc.whole else 4 / 16
            assert [run.share for run in each.runs] == pytest.approx(
                [share, float(number % 2 == 0), 1.0]
            )
            pairs = zip(own.hidden_states[1:], dense.hidden_states[1:], strict=True)
            layers = [torch.cosine_similarity(*pair, dim=-1).mean().item() for pair in pairs]
            assert stc.layers == pytest.approx(layers, abs=1e-5)
            assert plain.layers == pytest.approx([1.0] * 3, abs=1e-5)
            # The layers of a skipped frame did not run.
            assert all(math.isnan(x) for x in skip.layers) is (number % 2 == 1)
            rows.setdefault(number % 3, []).append([*layers, stc.cosine.mean().item()])
    of_stc = fidelity[0]
    assert of_stc is not None and of_stc.frames == (3, 2, 2)
    for age, values in rows.items():
        means = torch.tensor(values).mean(0).tolist()
        own_means = [*(layer[age] for layer in of_stc.layers), of_stc.features[age]]
        assert own_means == pytest.approx(means, abs=1e-5)


def test_dense_and_methods_take_turns_at_going_first(
    model: VisionModel, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    model.module.register_forward_hook(lambda *_: order.append("dense"))
    methods = [Method("a", CacherConfig.paper(0.5, 2)), Method("b")]
    time = MethodTower.time

    def told(self: MethodTower, inputs: dict[str, Tensor], clock: WallClock) -> object:
        order.append(self.method.name)
        return time(self, inputs, clock)

    monkeypatch.setattr(MethodTower, "time", told)
    (inputs,) = clip(1, generator)
    # Their copies have the hook as well.
    with FrameComparison(model, methods) as comparison:
        seen = []
        for _ in range(8):
            order.clear()
            comparison.step(inputs)
            seen.append("dense" if order[0] == "dense" else "methods")
    # Each phase of a cycle of two, in both orders.
    assert seen == ["dense", "methods", "methods", "dense"] * 2


def test_a_reset_begins_another_stream(model: VisionModel, generator: torch.Generator) -> None:
    frames = clip(3, generator)
    with FrameComparison(model, [Method("stc", CacherConfig.paper(0.25, 5))], layers=True) as both:
        ages = [both.step(inputs).runs[0].age for inputs in frames]
        both.reset()
        assert both.fidelity == (None,)
        ages += [both.step(inputs).runs[0].age for inputs in frames]
        assert ages == [0, 1, 2, 0, 1, 2]
        assert both.fidelity[0] is not None and both.fidelity[0].frames == (1, 1, 1)


def test_the_model_stays_as_it_is(model: VisionModel, generator: torch.Generator) -> None:
    (inputs,) = clip(1, generator)
    methods = [read_method(name) for name in ("stc", "skip", "merge:merged=2")]
    with FrameComparison(model, methods) as comparison:
        assert comparison.step(inputs).runs[0].layers == ()
        assert not any("forward" in vars(module) for module in model.module.modules())
        assert len(comparison.step(inputs).runs[0].record.layers) == 3
    assert not any(module._forward_hooks for module in model.module.modules())


def test_a_tower_that_a_method_cannot_run_leaves_nothing_open(
    model: VisionModel, generator: torch.Generator
) -> None:
    with pytest.raises(TypeError, match="no vision tower"):
        FrameComparison(
            VisionModel(**{**vars(model), "module": torch.nn.Linear(2, 2)}), [read_method("stc")]
        )
    closed: list[str] = []

    class Part:
        def attach(self, tower: torch.nn.Module) -> object:
            class Open:
                def __enter__(self) -> Open:
                    return self

                def __exit__(self, *error: object) -> None:
                    closed.append("closed")

            return Open()

    class Refuses:
        def attach(self, tower: torch.nn.Module) -> object:
            raise TypeError("not this one")

    with pytest.raises(TypeError, match="not this one"):
        FrameComparison(model, [Method("one", Part()), Method("two", Refuses())])
    assert closed == ["closed"]
