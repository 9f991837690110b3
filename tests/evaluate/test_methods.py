"""Tower methods that stand beside the Cacher, against plain statements of their rules."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from stc_stream.cacher import CacherConfig
from stc_stream.cacher.part import AttachedTower
from stc_stream.evaluate import methods
from stc_stream.evaluate.method import Method
from stc_stream.evaluate.methods import method_names, read_method
from stc_stream.pruner import PrunerConfig
from stc_stream.towers import read_tower
from stc_stream.towers.load import VisionModel
from stc_stream.towers.sizes import Packing

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


def make(seed: int, prefix: int = 0) -> VisionModel:
    torch.manual_seed(seed)
    if prefix:
        module: nn.Module = CLIPVisionModel(CLIPVisionConfig(**TINY))
    else:
        module = SiglipVisionModel(SiglipVisionConfig(**TINY, vision_use_head=False))
    module = module.eval().requires_grad_(False)
    return VisionModel(module, "tiny", False, 64, 16, 32, 3, HALF, HALF, CPU, torch.float32, prefix)


def make_packed(seed: int) -> VisionModel:
    torch.manual_seed(seed)
    config = Qwen2VLVisionConfig(depth=2, embed_dim=32, num_heads=2, mlp_ratio=2, hidden_size=16)
    module = Qwen2VisionTransformerPretrainedModel(config).eval().requires_grad_(False)
    sizes = (56, 14, 32, 2, HALF, HALF, CPU, torch.float32, 0, Packing(2, 2))
    return VisionModel(module, "tiny Qwen", False, *sizes)


def pixels(tower: VisionModel, frames: int, generator: torch.Generator) -> Tensor:
    return torch.randn(frames, 3, tower.image_size, tower.image_size, generator=generator)


def run(tower: VisionModel, frames: Tensor) -> Tensor:
    tokens: Tensor = tower.module(**tower.inputs(frames)).last_hidden_state
    return tokens


def attached(text: str, module: nn.Module) -> AbstractContextManager[AttachedTower]:
    method = read_method(text)
    assert method.tower is not None
    return method.tower.attach(module)


def merged_by_hand(module: nn.Module, embedded: Tensor, count: int, prefix: int) -> Tensor:
    """Token by token: groups of patches, their tokens, and each patch's token at the end."""
    groups = [[place] for place in range(len(embedded))]
    x = embedded
    for layer in module.encoder.layers:
        heads, width = 2, x.shape[1] // 2
        normed = layer.layer_norm1(x)
        q, k, v = (getattr(layer.self_attn, f"{name}_proj")(normed) for name in "qkv")
        context = torch.zeros_like(x)
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            logits = q[:, part] @ k[:, part].T / math.sqrt(width)
            # As if each token were there once for every patch that went into it.
            sizes = torch.tensor([float(len(group)) for group in groups])
            weights = logits.exp() * sizes
            context[:, part] = weights / weights.sum(1, keepdim=True) @ v[:, part]
        x = x + layer.self_attn.out_proj(context)
        keys = (k[:, :width] + k[:, width:]) / 2
        pairs = []
        for one in range(0, len(x), 2):
            if one < prefix:
                continue
            likeness = {
                other: float(torch.cosine_similarity(keys[one], keys[other], dim=0))
                for other in range(1, len(x), 2)
            }
            best = max(likeness, key=likeness.__getitem__)
            pairs.append((likeness[best], one, best))
        count_here = min(count, len(x) // 2 - prefix)
        totals = [x[place] * len(groups[place]) for place in range(len(x))]
        gone = set()
        for _, one, other in sorted(pairs, reverse=True)[:count_here]:
            totals[other] = totals[other] + totals[one]
            groups[other] = groups[other] + groups[one]
            gone.add(one)
        stay = [place for place in range(len(x)) if place not in gone]
        x = torch.stack([totals[place] / len(groups[place]) for place in stay])
        groups = [groups[place] for place in stay]
        x = x + layer.mlp(layer.layer_norm2(x))
    result = torch.empty_like(embedded)
    for token, group in zip(x, groups, strict=True):
        for place in group:
            result[place] = token
    return result


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("count", [1, 3, 6, 99])
def test_merging_is_what_a_plain_statement_does(
    seed: int, prefix: int, count: int, generator: torch.Generator
) -> None:
    tower = make(seed, prefix)
    frames = pixels(tower, 3, generator)
    with attached(f"merge:merged={count}", tower.module) as merging, merging.record() as record:
        found = run(tower, frames)
        states = tower.module(**tower.inputs(frames), output_hidden_states=True).hidden_states
    # A model may take any layer's output: a token a patch, of which as many are left as differ.
    assert [state.shape for state in states] == [states[0].shape] * 4
    embedded = tower.module.embeddings(frames)
    if prefix:
        embedded = tower.module.pre_layrnorm(embedded)
    for number in range(3):
        expected = merged_by_hand(tower.module, embedded[number], count, prefix)
        if not prefix:
            expected = tower.module.post_layernorm(expected)
        torch.testing.assert_close(found[number], expected, rtol=1e-4, atol=1e-4)
    left, tokens = [], embedded.shape[1]
    for _ in range(3):
        tokens -= max(0, min(count, tokens // 2 - prefix))
        left.append(tokens)
    assert record.share == pytest.approx([sum(left) / 3 / embedded.shape[1]] * 3)
    assert record.whole == (False,) * 3


@pytest.mark.parametrize(
    "text", ["stc:update_ratio=1", "skip:refresh_interval=1", "merge:merged=0"]
)
@pytest.mark.parametrize("prefix", [0, 1])
def test_with_a_budget_of_everything_a_method_is_dense(
    seed: int, prefix: int, text: str, generator: torch.Generator
) -> None:
    tower = make(seed, prefix)
    frames = pixels(tower, 4, generator)
    dense = run(tower, frames)
    with attached(text, tower.module) as running, running.record() as record:
        torch.testing.assert_close(run(tower, frames), dense, rtol=1e-5, atol=1e-5)
        assert list(record.share) == [1.0] * 4


@pytest.mark.parametrize("interval", [2, 3])
@pytest.mark.parametrize("build", [make, make_packed])
def test_skipping_gives_the_last_computed_output_again(
    seed: int, build: Callable[[int], VisionModel], interval: int, generator: torch.Generator
) -> None:
    """By hand: two streams, and the output of each one's last frame that was computed."""
    tower = build(seed)
    names = ["a", "a", "b", "a", "b", "b", "b", "a", "a"]
    frames = pixels(tower, len(names), generator)
    dense = run(tower, frames)
    own = dense if tower.packing is None else dense.unflatten(0, (len(names), -1))
    held: dict[str, Tensor] = {}
    seen = {"a": 0, "b": 0}
    expected, whole = [], []
    for number, name in enumerate(names):
        whole.append(seen[name] % interval == 0)
        if whole[-1]:
            held[name] = own[number]
        seen[name] += 1
        expected.append(held[name])
    wanted = torch.stack(expected).reshape(dense.shape)
    with attached(f"skip:refresh_interval={interval}", tower.module) as skipping:
        with skipping.streams(names), skipping.record() as record:
            torch.testing.assert_close(run(tower, frames), wanted, rtol=1e-5, atol=1e-5)
        assert record.whole == tuple(whole)
        assert record.share == tuple(map(float, whole))
        skipping.reset()
        one_by_one = []
        for number, name in enumerate(names):
            with skipping.streams([name]), skipping.record() as record:
                one_by_one.append(run(tower, frames[number : number + 1]))
            assert record.whole == (whole[number],)
        torch.testing.assert_close(torch.cat(one_by_one), wanted, rtol=1e-5, atol=1e-5)


def test_a_stream_that_is_forgotten_starts_anew(seed: int, generator: torch.Generator) -> None:
    tower = make(seed)
    frames = pixels(tower, 2, generator)
    dense = run(tower, frames)
    with attached("skip", tower.module) as skipping:
        for name in "ab":
            with skipping.streams([name]):
                run(tower, frames[:1])
        skipping.reset("a")
        for name in "ab":
            with skipping.streams([name]), skipping.record() as record:
                found = run(tower, frames[1:])
            assert record.whole == (name == "a",)
            expected = dense[1:] if name == "a" else dense[:1]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", ["stc", "skip", "merge", "random_tokens"])
def test_a_tower_is_given_back_as_it_was(seed: int, text: str, generator: torch.Generator) -> None:
    tower = make(seed)
    frames = pixels(tower, 2, generator)
    dense = run(tower, frames)
    with attached(text, tower.module):
        run(tower, frames)
    assert torch.equal(run(tower, frames), dense)
    assert not any("forward" in vars(module) for module in tower.module.modules())


def test_a_forward_that_fails_skips_nothing(seed: int, generator: torch.Generator) -> None:
    tower = make(seed)
    frames = pixels(tower, 3, generator)
    dense = run(tower, frames)
    last = read_tower(tower.module).layers[-1].module
    with attached("skip:refresh_interval=2", tower.module):
        handle = last.register_forward_pre_hook(lambda *given: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            run(tower, frames[:1])
        handle.remove()
        found = run(tower, frames)
    torch.testing.assert_close(found, dense[[0, 0, 2]], rtol=1e-5, atol=1e-5)


def test_a_tower_that_is_refused_halfway_is_left_as_it_was(seed: int) -> None:
    tower = make(seed)
    first, *_, last = (layer.module for layer in read_tower(tower.module).layers)
    # As transformers 5.0 leaves it: its own, which is no reason to refuse it.
    first.forward = first.forward
    with attached("merge", tower.module):
        pass
    last.forward = lambda *given, **named: given
    with pytest.raises(ValueError, match="a forward of its own already"):
        attached("merge", tower.module)
    assert [name for name, each in tower.module.named_modules() if "forward" in vars(each)] == [
        name for name, each in tower.module.named_modules() if each is last
    ]


@pytest.mark.parametrize("text", ["skip", "merge"])
def test_misuse_is_one_line(seed: int, text: str, generator: torch.Generator) -> None:
    tower = make(seed)
    with attached(text, tower.module) as running:
        with running.streams(["a"]), pytest.raises(ValueError, match="1 names .* has 2 frames"):
            run(tower, pixels(tower, 2, generator))
        with pytest.raises(TypeError, match="compare by value"), running.streams([torch.ones(1)]):
            pass
        with pytest.raises(ValueError, match="a forward of its own already"):
            attached(text, tower.module)
    with pytest.raises(TypeError, match="no vision tower"):
        attached(text, nn.Linear(2, 2))


def test_packed_frames_are_not_merged(seed: int) -> None:
    with pytest.raises(TypeError, match="packed frames cannot be"):
        attached("merge", make_packed(seed).module)


def test_methods_are_found_by_name_with_their_settings() -> None:
    assert set(method_names()) >= {"dense", "stc", "skip", "merge", "random_tokens"}
    for name in method_names():
        assert read_method(name).name == name
    text = "stc:update_ratio=0.1, refresh_interval=2,refresh_on_change=none"
    method = read_method(text)
    assert (method.name, method.tower) == (text, CacherConfig.paper(0.1, 2))
    assert method.pruner == PrunerConfig.paper()
    assert read_method("stc:tokens_per_frame=7").pruner == PrunerConfig.paper(7)
    assert read_method("stc").tower == CacherConfig()
    assert read_method("stc:reference_keys=int8").tower == CacherConfig(reference_keys="int8")
    intervals = [read_method(text).refresh_interval for text in ("dense", "merge", "skip", "stc")]
    assert intervals == [1, 1, 4, 4]
    dense = read_method("dense")
    assert (dense.tower, dense.pruner) == (None, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tome", f"method must be one of {', '.join(method_names())}, but is 'tome'"),
        ("", f"method must be one of {', '.join(method_names())}, but is ''"),
        ("skip:merged=3", "method skip has refresh_interval, but no 'merged'"),
        ("dense:merged=3", "method dense has no settings, but 'merged' was given"),
        ("skip:4", "method skip: settings must be setting=value, but one is '4'"),
        ("skip:refresh_interval=x", "method skip: refresh_interval must be a whole number, but"),
        ("skip:refresh_interval=0", "method skip: refresh_interval must be at least 1, but is 0"),
        ("stc:update_ratio=2", r"method stc: update_ratio must be in \(0, 1\], but is 2.0"),
        ("stc:threshold=x", "method stc: threshold must be a number or none, but is 'x'"),
        ("stc:reference_keys=x", "method stc: reference_keys must be full or int8, but is 'x'"),
        ("merge:merged=1,merged=2", "method merge has merged twice"),
        ("merge:merged=-1", "method merge: merged must be at least 0, but is -1"),
        ("random_tokens:seed=a", "method random_tokens: seed must be a whole number, but is"),
    ],
)
def test_what_is_no_method_is_one_line(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as found:
        read_method(text)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("class Odd: pass", "METHOD of odd.py must be a dataclass, the class itself, but is None"),
        ("class Odd: pass\nMETHOD = Odd", "METHOD of odd.py must be a dataclass"),
        (
            "from dataclasses import dataclass as data\n"
            "@data\nclass Odd:\n n: int = 3\nMETHOD = Odd()",
            r"the class itself, but is Odd\(n=3\)",
        ),
        (
            "from dataclasses import dataclass\n@dataclass\nclass Odd:\n"
            " def attached(self, tower): pass\nMETHOD = Odd",
            "Odd of odd.py must have attach, tower, pruner or memory, but has none of them",
        ),
    ],
)
def test_a_file_that_is_no_method_is_named(source, words, tmp_path, monkeypatch) -> None:
    (tmp_path / "odd.py").write_text(source)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    try:
        with pytest.raises(TypeError, match=words):
            read_method("odd")
    finally:
        sys.modules.pop("stc_stream.evaluate.methods.odd", None)


def test_a_part_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match=r"must have a method attach\(tower\), but 3 has none"):
        Method("x", tower=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="pruner must be a PrunerConfig, but is a int"):
        Method("x", pruner=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"must have a method open\(config\), but 3 has none"):
        Method("x", memory=3)  # type: ignore[arg-type]


def test_random_tokens_are_k_of_each_frame_and_any_of_them(
    seed: int, generator: torch.Generator
) -> None:
    tower = make(seed, prefix=1)
    frames = pixels(tower, 3, generator)
    chosen = torch.zeros(17)
    with attached("random_tokens:update_ratio=0.5,refresh_interval=300", tower.module) as running:
        for _ in range(20):
            with running.record() as record:
                run(tower, frames)
            for layer in record.layers:
                selective = layer.recomputed[~layer.refreshed]
                # Half of 16 patches, and the class token.
                assert torch.equal(selective.sum(1), torch.full((len(selective),), 9))
                chosen += selective.sum(0)
        assert record.share == pytest.approx([9 / 17] * 3)
    draws = 3 * (3 * 20 - 1)
    assert chosen[0] == draws
    # Each patch half the time: 177 draws have a standard deviation of 7 about 88.
    assert (chosen[1:] - draws / 2).abs().max() < 45
