"""Rules that go by the tower's attention, against plain statements: token by token."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from pruner.test_rivals import cosine, of_the_lowest
from torch import Tensor

from stc_stream import PrunerConfig, TokenPruner
from stc_stream.pruner import StreamingTom, VisionZip
from stc_stream.pruner.strategies.attention import TowerAttention


class Told:
    """Attention of frames as it was told, one after the other."""

    def __init__(self, attention: TowerAttention) -> None:
        self.attention = attention
        self.given = 0

    def __deepcopy__(self, memo) -> Told:
        return self

    def take(self, frames: int, tokens: int) -> TowerAttention:
        rows = slice(self.given, self.given + frames)
        self.given += frames
        own = self.attention
        return TowerAttention(own.received[rows], own.from_class[rows], own.keys[rows])


def told(frames: int, tokens: int, generator: torch.Generator) -> Told:
    received, from_class = torch.rand(2, frames, tokens, generator=generator)
    keys = torch.randn(frames, tokens, 4, generator=generator)
    return Told(TowerAttention(received, from_class, keys))


def pruned(rule, clip: Tensor, budget: int, sizes=None) -> tuple[list[list[int]], Tensor]:
    pruner = TokenPruner(PrunerConfig(strategy=rule, tokens_per_frame=budget))
    rule.attention.given = 0
    parts = [pruner(part) for part in clip.split(sizes or len(clip))]
    index = torch.cat([part.index for part in parts]).tolist()
    return index, torch.cat([part.tokens for part in parts])


def visionzip(frame: Tensor, attended: list[float], keys: Tensor, budget: int):
    """Return {place: token}."""
    merged = budget * 10 // 64
    dominant = of_the_lowest([-each for each in attended], budget - merged)
    kept = {place: frame[place] for place in dominant}
    rest = [place for place in range(len(frame)) if place not in kept]
    if not merged:
        return kept
    step = max(1, len(rest) // merged)
    groups = {place: [place] for place in rest[::step][:merged]}
    for place in rest:
        if place not in groups:
            best = max(groups, key=lambda target: cosine(keys[place], keys[target]))
            groups[best].append(place)
    for target, group in groups.items():
        kept[target] = sum(frame[place] for place in group) / len(group)
    return kept


def streamingtom(frame: Tensor, before: Tensor | None, attended: list[float], budget: int):
    """Return {place: token}, with threshold 0.5, two neighbours and β 0.6."""
    count = len(frame)
    static = [
        before is not None and cosine(frame[place], before[place]) > 0.5 for place in range(count)
    ]
    still = [place for place in range(count) if static[place]]
    changed = [place for place in range(count) if not static[place]]
    of_still = math.floor(budget * len(still) / count + 1e-9)
    of_changed = budget - of_still
    if of_changed > len(changed):
        of_changed, of_still = len(changed), budget - len(changed)
    best = of_the_lowest([-attended[place] for place in changed], of_changed)
    kept = {changed[rank]: frame[changed[rank]] for rank in best}
    if of_still == len(still):
        return kept | {place: frame[place] for place in still}

    def apart(one: int, other: int) -> float:
        return float((frame[one].double() - frame[other]).norm()) / math.sqrt(frame.shape[1])

    density = {}
    for place in still:
        nearest = sorted(apart(place, other) for other in still)[: min(2, len(still) - 1)]
        density[place] = math.exp(-sum(each**2 for each in nearest) / max(len(nearest), 1))
    furthest = max(apart(one, other) for one in still for other in still)
    scores = []
    for place in still:
        denser = [apart(place, other) for other in still if density[other] > density[place]]
        scores.append(density[place] * min(denser, default=furthest))
    peaks = [still[rank] for rank in of_the_lowest([-score for score in scores], of_still)]
    groups = {peak: [] for peak in peaks}
    for place in still:
        if place not in groups and peaks:
            groups[min(peaks, key=lambda peak: apart(place, peak))].append(place)
    for peak, group in groups.items():
        own = frame[peak]
        kept[peak] = own
        if group:
            kept[peak] = 0.6 * own + 0.4 * sum(frame[place] for place in group) / len(group)
    return kept


SIZES = [(1, 1, 2), (3, 7, 3), (4, 36, 8)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_visionzip_is_what_a_plain_statement_says(size, generator) -> None:
    frames, count, _ = size
    clip, source = torch.randn(size, generator=generator), told(frames, count, generator)
    for budget in {1, math.ceil(count / 3), math.ceil(count * 0.8), count}:
        index, tokens = pruned(VisionZip(source), clip, budget)
        for number, frame in enumerate(clip):
            attended = source.attention.from_class[number].tolist()
            expected = visionzip(frame, attended, source.attention.keys[number], budget)
            assert index[number] == sorted(expected)
            wanted = torch.stack([expected[place] for place in sorted(expected)])
            torch.testing.assert_close(tokens[number], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_streamingtom_is_what_a_plain_statement_says(size, generator) -> None:
    frames, count, _ = size
    clip = torch.randn(size, generator=generator)
    for number in range(1, frames):
        # Most places stay nearly as they were.
        stays = torch.rand(count, 1, generator=generator) < 0.7
        clip[number] = torch.where(stays, clip[number - 1] + 0.1 * clip[number], clip[number])
    source = told(frames, count, generator)
    rule = StreamingTom(source, threshold=0.5, neighbours=2)
    for budget in {1, math.ceil(count / 3), math.ceil(count * 0.8), count}:
        index, tokens = pruned(rule, clip, budget)
        for number, frame in enumerate(clip):
            before = clip[number - 1] if number else None
            attended = source.attention.received[number].tolist()
            expected = streamingtom(frame, before, attended, budget)
            assert index[number] == sorted(expected)
            wanted = torch.stack([expected[place] for place in sorted(expected)])
            torch.testing.assert_close(tokens[number], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [VisionZip, StreamingTom])
def test_everything_is_kept_as_it_is_and_chunks_change_nothing(kind, generator) -> None:
    clip = torch.randn(7, 12, 6, generator=generator)
    clip[3] = clip[2]
    rule = kind(told(7, 12, generator))
    index, tokens = pruned(rule, clip, 12)
    assert index == [[*range(12)]] * 7
    assert torch.equal(tokens, clip)
    whole = pruned(rule, clip, 7)
    for sizes in ([1] * 7, [3, 1, 3]):
        parts = pruned(rule, clip, 7, sizes)
        assert parts[0] == whole[0]
        torch.testing.assert_close(parts[1], whole[1])
    early = pruned(rule, clip[:4], 7)
    assert early[0] == whole[0][:4]
    torch.testing.assert_close(early[1], whole[1][:4])


@pytest.mark.parametrize("kind", [VisionZip, partial(StreamingTom, threshold=1.0)])
def test_ties_go_to_the_first_and_what_is_not_finite_is_last(kind, generator) -> None:
    clip = torch.randn(2, 6, 4, generator=generator)
    source = told(2, 6, generator)
    source.attention.received.fill_(0.5)
    source.attention.from_class.fill_(0.5)
    assert pruned(kind(source), clip, 3)[0] == [[0, 1, 2]] * 2
    clip[:, 1, 2] = torch.nan
    source.attention.received[:, 3] = torch.nan
    source.attention.from_class[:, 3] = torch.nan
    index, tokens = pruned(kind(source), clip, 3)
    assert index == [[0, 2, 4]] * 2
    assert tokens.isfinite().all()


def test_what_is_not_finite_is_merged_into_nothing(generator) -> None:
    clip = torch.randn(1, 12, 4, generator=generator)
    clip[0, 11] = torch.inf
    source = told(1, 12, generator)
    index, tokens = pruned(VisionZip(source), clip, 7)
    assert 11 not in index[0]
    assert tokens.isfinite().all()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [VisionZip, StreamingTom])
def test_merged_tokens_are_of_the_tokens_dtype(kind, half, generator) -> None:
    clip = torch.randn(3, 12, 4, generator=generator).to(half)
    assert pruned(kind(told(3, 12, generator)), clip, 7)[1].dtype == half


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"threshold": 2}, ValueError, r"threshold must be in \[-1, 1\], but is 2"),
        ({"beta": -1}, ValueError, r"beta must be in \[0, 1\], but is -1"),
        ({"beta": None}, TypeError, "beta must be a number"),
        ({"neighbours": 0}, ValueError, "neighbours must be at least 1"),
    ],
)
def test_wrong_settings_are_named(settings, error, message) -> None:
    with pytest.raises(error, match=message):
        StreamingTom(None, **settings)
