"""Other papers' rules, each against a plain statement of it: token by token, frame by frame."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from stc_stream import PrunerConfig, TokenPruner
from stc_stream.pruner import Dtd, Evs, EvsPerFrame, PruningStrategy, Random, Uniform, VidCom2

CAUSAL = [Uniform(), Random(3), EvsPerFrame(), Dtd(0.2)]
RULES = [*CAUSAL, Evs(), VidCom2()]
SIZES = [(1, 1, 1), (5, 7, 6), (4, 36, 16), (9, 13, 5)]


def called(rule: PruningStrategy) -> str:
    return type(rule).__name__


def pruner_of(rule: PruningStrategy, budget: int) -> TokenPruner:
    return TokenPruner(PrunerConfig(strategy=rule, tokens_per_frame=budget))


def places(rule: PruningStrategy, clip: Tensor, budget: int) -> list[list[int]]:
    return [row.tolist() for row in pruner_of(rule, budget)(clip).index]


def cosine(one: Tensor, other: Tensor) -> float:
    dot = sum(float(a) * float(b) for a, b in zip(one, other, strict=True))
    lengths = [max(math.sqrt(sum(float(a) ** 2 for a in each)), 1e-8) for each in (one, other)]
    return dot / lengths[0] / lengths[1]


def cosines_to_the_frame_before(clip: Tensor) -> list[list[float]]:
    """Every token against its place in the frame before; the first frame is unlike anything."""
    found = [[-math.inf] * clip.shape[1]]
    for before, frame in pairwise(clip):
        found.append([cosine(*pair) for pair in zip(frame, before, strict=True)])
    return found


def of_the_lowest(values: list[float], count: int) -> list[int]:
    return sorted(sorted(range(len(values)), key=lambda place: (values[place], place))[:count])


def uniformly(clip: Tensor, budget: int) -> list[list[int]]:
    count = clip.shape[1]
    middles = [(rank + 0.5) * count / budget for rank in range(budget)]
    return [[math.floor(middle + 1e-9) for middle in middles]] * len(clip)


def at_random(clip: Tensor, budget: int) -> list[list[int]]:
    draws = (random.Random(f"3 {number}") for number in range(len(clip)))
    return [sorted(draw.sample(range(clip.shape[1]), budget)) for draw in draws]


def evs_frame_by_frame(clip: Tensor, budget: int) -> list[list[int]]:
    rows = cosines_to_the_frame_before(clip)
    return [of_the_lowest(row, budget if number else len(row)) for number, row in enumerate(rows)]


def evs_at_once(clip: Tensor, budget: int) -> list[list[int]]:
    frames, count = clip.shape[:2]
    flat = [value for row in cosines_to_the_frame_before(clip) for value in row]
    kept = of_the_lowest(flat, max(count, budget * frames))
    return [[place - f * count for place in kept if place // count == f] for f in range(frames)]


def dtd(clip: Tensor, budget: int) -> list[list[int]]:
    kept = []
    for number, row in enumerate(cosines_to_the_frame_before(clip)):
        changed = [place for place, value in enumerate(row) if not value > 0.2]
        if number and len(changed) > budget:
            changed = of_the_lowest(row, budget)
        kept.append(changed)
    return kept


def vidcom2(clip: Tensor, budget: int) -> list[list[int]]:
    frames, count, width = clip.shape
    columns = [[float(x) for x in column] for column in clip.flatten(0, 1).T]
    means = [sum(column) / len(column) for column in columns]
    spread = [
        sum((x - mean) ** 2 for x in column) for column, mean in zip(columns, means, strict=True)
    ]
    quiet = of_the_lowest(spread, max(1, width // 2))

    def unit(token: Tensor) -> list[float]:
        values = [float(token[channel]) for channel in quiet]
        length = max(math.sqrt(sum(x * x for x in values)), 1e-12)
        return [x / length for x in values]

    def mean(tokens: list[list[float]]) -> list[float]:
        return [sum(column) / len(tokens) for column in zip(*tokens, strict=True)]

    def likeness(token: list[float], to: list[float]) -> float:
        apart = sum((a - b) ** 2 for a, b in zip(token, to, strict=True))
        return sum(math.exp(-apart / (2 * 2.0**power)) for power in range(-3, 2))

    units = [[unit(token) for token in frame] for frame in clip]
    video = mean([token for frame in units for token in frame])
    to_video = [[likeness(token, video) for token in frame] for frame in units]
    apart = [-sum(row) / count / 0.01 for row in to_video]
    powers = [math.exp(each - max(apart)) for each in apart]
    shares = [power / sum(powers) for power in powers]
    kept = []
    for frame, row, share in zip(units, to_video, shares, strict=True):
        own = budget / count * (1 + share - sum(shares) / frames)
        number = count if budget == count else min(count, max(1, round(own * count)))
        own_mean = mean(frame)
        scores = [a + likeness(token, own_mean) for a, token in zip(row, frame, strict=True)]
        kept.append(of_the_lowest(scores, number))
    return kept


STATEMENTS = [uniformly, at_random, evs_frame_by_frame, dtd, evs_at_once, vidcom2]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("rule", "stated"), [*zip(RULES, STATEMENTS, strict=True)])
def test_a_rule_is_what_a_plain_statement_says(rule, stated, size, generator) -> None:
    # In steps of a walk: tokens that stay alike for a while, and others.
    steps = torch.rand(size[0], size[1], 1, generator=generator)
    clip = (steps * torch.randn(size, generator=generator)).cumsum(0)
    for budget in {1, math.ceil(size[1] / 3), size[1]}:
        pruned = pruner_of(rule, budget)(clip)
        expected = stated(clip, budget)
        assert [row.tolist() for row in pruned.index] == expected
        for frame, kept, own in zip(clip, pruned.tokens, expected, strict=True):
            assert torch.equal(kept, frame[own])


@pytest.mark.parametrize("rule", [*RULES[:3], Dtd(1.0), *RULES[4:]], ids=called)
@pytest.mark.parametrize("half", [torch.float32, torch.bfloat16])
def test_with_a_budget_of_everything_everything_is_kept(rule, half, generator) -> None:
    clip = torch.randn(4, 9, 6, generator=generator).to(half)
    clip[2] = clip[1]
    pruned = pruner_of(rule, 9)(clip)
    assert [row.tolist() for row in pruned.index] == [[*range(9)]] * 4
    assert torch.equal(torch.stack(list(pruned.tokens)), clip)


@pytest.mark.parametrize("rule", CAUSAL, ids=called)
def test_later_frames_and_chunks_change_nothing(rule, generator) -> None:
    clip = torch.randn(9, 12, 6, generator=generator).cumsum(0)
    whole = places(rule, clip, 4)
    assert places(rule, clip[:5], 4) == whole[:5]
    other = clip.clone()
    other[5:] = torch.randn(4, 12, 6, generator=generator)
    assert places(rule, other, 4)[:5] == whole[:5]
    for sizes in ([1] * 9, [4, 1, 4], [2, 7]):
        pruner = pruner_of(rule, 4)
        parts = [row.tolist() for part in clip.split(sizes) for row in pruner(part).index]
        assert parts == whole


def test_rules_about_whole_clips_say_so(generator) -> None:
    clip = torch.randn(9, 12, 6, generator=generator).cumsum(0)
    other = clip.clone()
    other[1:] = clip[0] + 1e-3 * torch.randn(8, 12, 6, generator=generator)
    other[-1] = torch.randn(12, 6, generator=generator) * 9
    assert [called(rule) for rule in RULES if rule.whole_calls] == ["Evs", "VidCom2"]
    early = torch.cat([clip[:5], other[5:]])
    for rule in (Evs(), VidCom2()):
        assert places(rule, early, 4)[:5] != places(rule, clip, 4)[:5]


@pytest.mark.parametrize("rule", [EvsPerFrame(), Evs()], ids=called)
def test_of_equal_ones_the_first_is_kept(rule) -> None:
    clip = torch.ones(3, 5, 2)
    clip[1, 3] = clip[2, 3] = torch.tensor([1.0, -1.0])
    # Place 3 is like nothing before it in frame 1, and like before in frame 2.
    assert places(rule, clip, 2)[1] == ([0, 3] if rule == EvsPerFrame() else [3])
    assert places(rule, clip, 2)[2] == ([0, 1] if rule == EvsPerFrame() else [])


def test_drop_is_above_the_threshold_and_not_at_it() -> None:
    clip = torch.tensor([[[1.0, 0.0]] * 3, [[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]])
    at = float(torch.tensor([1.0, 0.0]) @ torch.tensor([1.0, 1.0]) / math.sqrt(2))
    assert places(Dtd(0.75), clip, 3) == [[0, 1, 2], [1, 2]]
    assert places(Dtd(0.0), clip, 3) == [[0, 1, 2], [2]]
    assert places(Dtd(at - 1e-3), clip, 3) == [[0, 1, 2], [2]]
    assert places(Dtd(0.75), clip, 1) == [[0, 1, 2], [2]]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("rule", RULES, ids=called)
def test_what_is_not_finite_is_kept_last(rule, value, generator) -> None:
    clip = torch.randn(4, 6, 8, generator=generator)
    clip[2, 1, 3] = value
    kept = places(rule, clip, 3)
    if rule not in (Uniform(), Random(3)):
        assert 1 not in kept[2] or kept[2] == [*range(6)]
    everything = places(rule, clip, 6)
    if called(rule) != "Dtd":
        assert everything == [[*range(6)]] * 4


@pytest.mark.parametrize("rule", RULES, ids=called)
def test_a_grid_shows_patches_alone(rule, generator) -> None:
    frames = torch.randn(4, 4 * 5, 6, generator=generator).cumsum(0)
    patches = frames.view(4, 4, 5, 6)[:, :, :4].flatten(1, 2)
    grid = TokenPruner(PrunerConfig(strategy=rule, tokens_per_frame=5, layout="grid"))(frames)
    for own, rows in zip(places(rule, patches, 5), grid.index, strict=True):
        expected = [place // 4 * 5 + place % 4 for place in own] + [4, 9, 14, 19]
        assert rows.tolist() == sorted(expected)


def test_random_tokens_are_any_of_them_and_follow_the_seed(generator) -> None:
    clip = torch.randn(400, 10, 2, generator=generator)
    counts = torch.zeros(10)
    for row in places(Random(0), clip, 3):
        counts[row] += 1
    # 120 each, with a standard deviation of 9.
    assert (counts - 120).abs().max() < 60
    assert places(Random(0), clip, 3) != places(Random(1), clip, 3)
    assert places(Random(0), clip, 3) == places(Random(0), clip + 1, 3)


@pytest.mark.parametrize("threshold", [-1.1, 2, math.nan])
def test_a_threshold_out_of_range_is_named(threshold) -> None:
    with pytest.raises(ValueError, match=r"threshold must be in \[-1, 1\], but is"):
        Dtd(threshold)
    with pytest.raises(TypeError, match="threshold must be a number"):
        Dtd("x")
