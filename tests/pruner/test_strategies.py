"""Rules of one's own: what they are asked, what becomes of their answers, what is refused."""

from __future__ import annotations

from contextlib import contextmanager
from enum import Enum
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import stc_kernels
from stc_stream import PrunerConfig, TokenPruner
from stc_stream.pruner import DualAnchor, Gaussian, PruningStrategy, ScoreStrategy
from stc_stream.towers import read_tower


class FarFromLast(ScoreStrategy):
    """Novelty is the distance to the mean of the frame before; larger tokens at first."""

    def score(self, tokens: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        assert len(tokens) == 1
        apart = tokens if past is None else tokens - past
        return apart.norm(dim=-1), tokens.mean(1)


class Larger(ScoreStrategy):
    """Novelty is a token's length; there is no past."""

    scores_frames_together = True

    def score(self, tokens: Tensor, past: None) -> tuple[Tensor, None]:
        return tokens.norm(dim=-1), None


class LongerThan(PruningStrategy):
    """Keeps tokens longer than a limit, however many; at least the first of each frame."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def select(self, tokens: Tensor, past: int | None, budget: int):
        chosen = tokens.norm(dim=-1) > self.limit
        chosen[:, 0] = True
        index = [row.nonzero().flatten() for row in chosen]
        kept = [frame[at] for frame, at in zip(tokens, index, strict=True)]
        return kept, index, (past or 0) + len(tokens)


class MergePairs(PruningStrategy):
    """Averages each token with the next."""

    def select(self, tokens: Tensor, past: None, budget: int):
        pairs = tokens[:, : 2 * budget].unflatten(1, (budget, 2))
        index = torch.arange(0, 2 * budget, 2).expand(len(tokens), -1)
        return pairs.mean(2), index, None


def rows_of(frames: Tensor, scores: list[Tensor], k: int) -> list[list[int]]:
    return [sorted(score.argsort(descending=True, stable=True)[:k].tolist()) for score in scores]


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6), draw=st.integers(0, 2**31))
def test_a_score_is_asked_frame_by_frame(sizes: list[int], draw: int) -> None:
    clip = torch.randn(sum(sizes), 12, 6, generator=torch.Generator().manual_seed(draw))
    scores = [
        (frame - (clip[t - 1].mean(0) if t else 0)).norm(dim=-1) for t, frame in enumerate(clip)
    ]
    pruner = TokenPruner(PrunerConfig(strategy=FarFromLast(), tokens_per_frame=5))
    parts = [pruner(part, stream="door") for part in clip.split(sizes)]
    assert torch.cat([part.index for part in parts]).tolist() == rows_of(clip, scores, 5)
    found = torch.cat([part.tokens for part in parts])
    assert torch.equal(found, clip.gather(1, torch.cat([p.index for p in parts])[..., None]
                                          .expand(-1, -1, 6)))  # fmt: skip


def test_each_stream_has_its_past_and_forgets_it(generator) -> None:
    door, yard = torch.randn(2, 6, 12, 6, generator=generator)
    config = PrunerConfig(strategy=FarFromLast(), keep_ratio=0.5)
    alone, pruner = TokenPruner(config)(door).index, TokenPruner(config)
    parts = []
    for t in range(6):
        parts.append(pruner(door[t : t + 1], stream="door").index)
        pruner(yard[t : t + 1], stream="yard")
    assert torch.equal(torch.cat(parts), alone)
    pruner.reset("door")
    assert torch.equal(pruner(door, stream="door").index, alone)
    first = rows_of(door[:1], [(door[0] - yard[-1].mean(0)).norm(dim=-1)], 6)
    index = pruner(door, stream="yard").index
    assert index[:1].tolist() == first
    assert torch.equal(index[1:], alone[1:])


def test_frames_may_keep_different_numbers(generator) -> None:
    clip = torch.randn(7, 12, 6, generator=generator) * torch.rand(7, 12, 1, generator=generator)
    pruner = TokenPruner(PrunerConfig(strategy=LongerThan(1.2), keep_ratio=1.0))
    pruned = pruner(clip)
    assert len({len(index) for index in pruned.index}) > 1
    for frame, kept, index in zip(clip, pruned.tokens, pruned.index, strict=True):
        expected = [t for t in range(12) if t == 0 or frame[t].norm() > 1.2]
        assert index.tolist() == expected
        assert torch.equal(kept, frame[expected])
    assert pruner(clip[:0]).tokens.shape == (0, 12, 6)


def test_what_is_merged_goes_on_merged(generator) -> None:
    clip = torch.randn(3, 12, 6, generator=generator)
    pruned = TokenPruner(PrunerConfig(strategy=MergePairs(), tokens_per_frame=4))(clip)
    assert pruned.index.tolist() == [[0, 2, 4, 6]] * 3
    expected = torch.stack([(clip[:, t] + clip[:, t + 1]) / 2 for t in (0, 2, 4, 6)], 1)
    torch.testing.assert_close(pruned.tokens, expected)


@pytest.mark.parametrize("side", [2, 5])
@pytest.mark.parametrize(
    "strategy",
    [FarFromLast(), Larger(), LongerThan(1.5), MergePairs(), "dual_anchor", "gaussian"],
    ids=lambda strategy: getattr(type(strategy), "__name__", strategy),
)
def test_a_grid_shows_patches_and_keeps_newlines(strategy, side, generator, monkeypatch) -> None:
    frames = torch.randn(4, side * (side + 1), 6, generator=generator)
    at = [t for t in range(side * (side + 1)) if t % (side + 1) != side]
    newlines = [t for t in range(side * (side + 1)) if t % (side + 1) == side]
    flat = TokenPruner(PrunerConfig(strategy=strategy, tokens_per_frame=2))(frames[:, at])
    pruned = TokenPruner(PrunerConfig(strategy=strategy, tokens_per_frame=2, layout="grid"))(frames)
    for f in range(4):
        expected = {at[place]: token for place, token in zip(flat.index[f].tolist(), flat.tokens[f],
                                                             strict=True)}  # fmt: skip
        expected |= {row: frames[f, row] for row in newlines}
        assert pruned.index[f].tolist() == sorted(expected)
        for row, token in zip(pruned.index[f].tolist(), pruned.tokens[f], strict=True):
            torch.testing.assert_close(token, expected[row], atol=0, rtol=0)


def test_scores_that_are_huge_or_not_finite_do_not_take_a_newline_s_place(generator) -> None:
    class Odd(ScoreStrategy):
        def score(self, tokens: Tensor, past: None) -> tuple[Tensor, None]:
            high = torch.finfo(torch.float32).max
            return torch.tensor([[high, torch.inf, torch.nan, 1.0]]), None

    frames = torch.randn(2, 6, 3, generator=generator)
    config = PrunerConfig(strategy=Odd(), tokens_per_frame=2, layout="grid")
    # Patches 0 and 3 are rows 0 and 4; rows 2 and 5 are newlines.
    assert TokenPruner(config)(frames).index.tolist() == [[0, 2, 4, 5]] * 2


def test_a_grid_is_gathered_once(generator, monkeypatch) -> None:
    gathered = []
    for name in ("gather_tokens", "topk_gather", "prune_tokens"):
        op = getattr(stc_kernels, name)
        monkeypatch.setattr(
            stc_kernels, name, lambda *a, op=op, name=name: (gathered.append(name), op(*a))[1]
        )
    pruner = TokenPruner(PrunerConfig.paper(tokens_per_frame=4, layout="grid"))
    pruner(torch.randn(3, 20, 8, generator=generator))
    assert gathered == ["topk_gather"]


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_scores_may_be_of_any_precision(half, generator) -> None:
    clip = torch.randn(3, 12, 8, generator=generator).to(half)
    pruned = TokenPruner(PrunerConfig(strategy=Larger(), tokens_per_frame=3))(clip)
    scores = [frame.norm(dim=-1) for frame in clip]
    assert pruned.tokens.dtype == half
    assert pruned.index.tolist() == rows_of(clip, scores, 3)


@pytest.mark.parametrize(
    ("settings", "strategy"),
    [
        ({"alpha": 0.8, "window": 3}, DualAnchor(0.8, window=3)),
        ({"strategy": "gaussian", "channel_keep_ratio": 0.3}, Gaussian(0.3)),
    ],
)
def test_the_named_ones_are_objects_too(settings, strategy, generator) -> None:
    clip = torch.randn(9, 20, 16, generator=generator)
    named = TokenPruner(PrunerConfig(tokens_per_frame=5, **settings))
    own = TokenPruner(PrunerConfig(tokens_per_frame=5, strategy=strategy))
    for part in clip.split([4, 1, 4]):
        assert torch.equal(named(part).index, own(part).index)


def test_a_fused_choice_is_the_choice_of_its_scores(generator) -> None:
    clip = torch.randn(5, 30, 16, generator=generator)
    for strategy in (DualAnchor(), Gaussian()):
        _, index, _ = strategy.select(clip, None, 7)
        scores, _ = strategy.scores(clip, None)
        assert index.tolist() == rows_of(clip, list(scores), 7)


class LargestKeys(ScoreStrategy):
    """Keeps patches whose keys in the tower's last layer are longest: a rule with a tower part."""

    def attach(self, tower):
        @contextmanager
        def attached():
            projection = read_tower(tower).layers[-1].module.self_attn.k_proj
            hook = projection.register_forward_hook(
                lambda module, inputs, keys: setattr(self, "keys", keys)
            )
            try:
                yield self
            finally:
                hook.remove()

        return attached()

    scores_frames_together = True

    def score(self, tokens: Tensor, past: None) -> tuple[Tensor, None]:
        return self.keys.norm(dim=-1), None


def test_a_rule_may_have_a_part_in_the_tower(seed, generator) -> None:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(seed)
    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        image_size=32, patch_size=8, vision_use_head=False,
    )  # fmt: skip
    tower = SiglipVisionModel(config).eval().requires_grad_(False)
    pixels = torch.randn(3, 3, 32, 32, generator=generator)
    rule = LargestKeys()
    pruner = TokenPruner(PrunerConfig(strategy=rule, tokens_per_frame=5))
    with rule.attach(tower):
        states = tower(pixels, output_hidden_states=True)
        pruned = pruner(states.last_hidden_state)
    layer = read_tower(tower).layers[-1]
    keys = layer.key(layer.norm1(states.hidden_states[-2]))
    assert pruned.index.tolist() == rows_of(pixels, list(keys.norm(dim=-1)), 5)
    before = rule.keys
    tower(pixels + 1)
    assert rule.keys is before


CLIP = torch.zeros(2, 6, 3)
PLACES = torch.tensor([[0, 1], [2, 4]])


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ((CLIP[:, :2], PLACES.int(), None), TypeError, r"places of torch\.int64, .* torch\.int32"),
        ((CLIP[:, :2].double(), PLACES, None), TypeError, "tokens of torch.float32.*float64"),
        ((CLIP[:, :3], PLACES, None), ValueError, r"shape \[2, k, 3\] .*\[2, 3, 3\] and \[2, 2\]"),
        ((CLIP[:1, :2], PLACES, None), ValueError, r"but returned \[1, 2, 3\]"),
        ((CLIP[:, 0], PLACES[:, 0], None), ValueError, r"places of \[2, k\]"),
        ((CLIP[:, :2], PLACES + 2, None), ValueError, r"in 0\.\.5, but returned 2\.\.6"),
        ((CLIP[:, :2], PLACES - 1, None), ValueError, r"in 0\.\.5, but returned -1\.\.3"),
        ((CLIP[:, :2], PLACES.flip(1), None), ValueError, "ascending order"),
        ((CLIP[:, :2], PLACES * 0, None), ValueError, "ascending order, each once"),
        ((list(CLIP), PLACES, None), TypeError, "a list and a Tensor"),
        (([CLIP[0]], [PLACES[0]], None), ValueError, "lists of 2 tensors, .* returned 1 and 1"),
        (([CLIP[0, :2], 7], list(PLACES), None), TypeError, "but returned int"),
        (([CLIP[0, :2], CLIP[0, :1]], list(PLACES), None), ValueError, r"\[k, 3\] .*\[1, 3\]"),
        ((CLIP[:, :2], PLACES.to("meta"), None), ValueError, "places on cpu, but returned meta"),
    ],
)
@pytest.mark.parametrize("layout", ["flat", "grid"])
def test_wrong_answers_are_named(layout, answer, error, message) -> None:
    rule = SimpleNamespace(select=lambda tokens, past, budget: answer)
    config = PrunerConfig(strategy=rule, tokens_per_frame=2, layout=layout)
    clip = CLIP if layout == "flat" else torch.zeros(2, 12, 3)
    if layout == "grid":
        message = message.replace(r"0\.\.5", r"0\.\.8")
        if "returned 2" in message:
            return  # Nine patches have such places.
    pruner = TokenPruner(config)
    with pytest.raises(error, match=f"SimpleNamespace.select must return .*{message}"):
        pruner(clip)
    with pytest.raises(ValueError, match="streams known: none"):
        pruner.reset("default")


@pytest.mark.parametrize(
    ("novelty", "error", "message"),
    [
        (None, TypeError, "its novelty is NoneType"),
        (torch.zeros(1, 6, dtype=torch.int64), TypeError, r"novelty is torch\.int64"),
        (torch.zeros(6), ValueError, r"of shape \[1, 6\] on cpu, but returned \[6\] on cpu"),
        (torch.zeros(1, 6, device="meta"), ValueError, r"\[1, 6\] on meta"),
    ],
)
def test_wrong_scores_are_named(novelty, error, message) -> None:
    class Wrong(ScoreStrategy):
        def score(self, tokens: Tensor, past: None):
            return novelty, None

    with pytest.raises(error, match=rf"Wrong\.score must return .*{message}"):
        TokenPruner(PrunerConfig(strategy=Wrong(), tokens_per_frame=2))(CLIP)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"strategy": 3}, TypeError, r"one of dual_anchor, gaussian, or an object .*, but is 3"),
        ({"strategy": Larger}, TypeError, r"object with select\(.*Larger"),
        ({"strategy": Larger(), "alpha": 0.4}, ValueError, r"alpha is a setting .* is 0\.4 beside"),
        ({"strategy": Larger(), "window": 4}, ValueError, "window is a setting of"),
        ({"strategy": Larger(), "history": "released"}, ValueError, "history is a setting of"),
    ],
)
def test_wrong_strategies_are_named(settings, error, message) -> None:
    with pytest.raises(error, match=message):
        PrunerConfig(keep_ratio=0.5, **settings)


def test_settings_of_the_named_ones_are_checked() -> None:
    for make, message in (
        (lambda: DualAnchor(alpha=2), r"alpha must be in \[0, 1\]"),
        (lambda: DualAnchor(window=0), "window must be at least 1"),
        (lambda: Gaussian(0), "channel_keep_ratio must be in"),
        (lambda: Gaussian(history="x"), "history must be one of causal, released"),
        (lambda: Gaussian(history="released", window=2), "no window, but window is 2"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize(
    ("answer", "found"), [(CLIP, "Tensor"), ((CLIP, PLACES), "tuple of 2"), (None, "NoneType")]
)
def test_an_answer_that_is_no_selection_is_named(answer, found) -> None:
    rule = SimpleNamespace(select=lambda tokens, past, budget: answer)
    for layout, length in (("flat", 6), ("grid", 12)):
        config = PrunerConfig(strategy=rule, tokens_per_frame=2, layout=layout)
        with pytest.raises(TypeError, match=rf"\(tokens, places, past\), but returned a {found}"):
            TokenPruner(config)(torch.zeros(2, length, 3))


class Remembers(ScoreStrategy):
    """Keeps larger tokens, and remembers what it is told to."""

    def __init__(self, remember) -> None:
        self.remember = remember

    def score(self, tokens: Tensor, past: object) -> tuple[Tensor, object]:
        return tokens.norm(dim=-1), self.remember(tokens, past)


@pytest.mark.parametrize("layout", ["flat", "grid"])
def test_a_past_that_grows_with_its_stream_is_refused(layout, generator) -> None:
    rule = Remembers(lambda tokens, past: [*(past or []), {"frame": tokens.clone()}])
    pruner = TokenPruner(PrunerConfig(strategy=rule, tokens_per_frame=2, layout=layout))
    clip = torch.randn(60, 12, 3, generator=generator)
    frame_bytes = 4 * 3 * (12 if layout == "flat" else 9)
    fit = 16 * 12 * 3 * 4 // frame_bytes
    for frame in clip[:fit]:
        pruner(frame[None])
    message = (
        rf"Remembers must .* at most 2304 bytes .* remembers {(fit + 1) * frame_bytes}: a past"
    )
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            pruner(clip[:1])
    pruner.reset("default")
    pruner(clip[:1])


def test_a_rule_may_say_how_much_it_remembers(generator) -> None:
    class All(Remembers):
        def max_past_bytes(self, tokens: int, channels: int) -> int:
            return 20 * tokens * channels * 4

    rule = All(lambda tokens, past: (*(past or ()), tokens.clone())[-20:])
    pruner = TokenPruner(PrunerConfig(strategy=rule, tokens_per_frame=2))
    for frames in (20, 3, 30):
        pruner(torch.randn(frames, 12, 3, generator=generator))


def test_a_past_may_hold_itself(generator) -> None:
    class Kind(Enum):
        OWN = 1

    def remember(tokens, past):
        ring = SimpleNamespace(kind=Kind.OWN, means=[tokens.mean(1)])
        ring.means.append(ring)
        return ring

    pruner = TokenPruner(PrunerConfig(strategy=Remembers(remember), tokens_per_frame=2))
    pruner(torch.randn(4, 12, 3, generator=generator))
    grows = Remembers(lambda tokens, past: remember(torch.zeros(1, 1, 10_000), past))
    with pytest.raises(ValueError, match="but remembers 40000"):
        TokenPruner(PrunerConfig(strategy=grows, tokens_per_frame=2))(
            torch.randn(4, 12, 3, generator=generator)
        )


def test_a_past_that_is_a_view_of_the_tokens_is_refused(generator) -> None:
    clip = torch.randn(4, 12, 3, generator=generator)
    for remember in (
        lambda tokens, past: tokens,
        lambda tokens, past: SimpleNamespace(x=tokens[0]),
    ):
        pruner = TokenPruner(PrunerConfig(strategy=Remembers(remember), tokens_per_frame=2))
        with pytest.raises(ValueError, match="Remembers must not remember a view .* a clone"):
            pruner(clip)
        with pytest.raises(ValueError, match="streams known: none"):
            pruner.reset("default")


def test_tokens_that_no_op_sees_are_checked_too(generator) -> None:
    pruner = TokenPruner(PrunerConfig(strategy=LongerThan(1.0), keep_ratio=1.0))
    with pytest.raises(TypeError, match="dtype float32, float16 or bfloat16, but has .*float64"):
        pruner(torch.zeros(1, 12, 3, dtype=torch.float64))
    tokens = torch.randn(2, 12, 3, generator=generator, requires_grad=True)
    with pytest.raises(ValueError, match="tokens must not require grad in grad mode"):
        pruner(tokens)
    with torch.no_grad():
        assert not pruner(tokens).tokens[0].requires_grad


def test_a_rule_with_weights_of_its_own_keeps_no_graph(generator) -> None:
    weight = torch.randn(3, generator=generator, requires_grad=True)

    class Learned(ScoreStrategy):
        def score(self, tokens: Tensor, past: None) -> tuple[Tensor, Tensor]:
            return tokens @ weight, weight * 2

    clip = torch.randn(2, 12, 3, generator=generator)
    pruner = TokenPruner(PrunerConfig(strategy=Learned(), tokens_per_frame=4))
    assert pruner(clip).index.tolist() == rows_of(clip, list(clip @ weight), 4)
    assert not pruner._streams["default"].past.requires_grad
