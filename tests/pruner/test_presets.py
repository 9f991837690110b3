"""The presets against algorithm.md said plainly: loops over frames, none of our ops."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from stc_stream import PrunerConfig, TokenPruner

CLEAR = 1e-5
"""How far apart the last kept and the first dropped token must be for float32 to agree."""


@dataclass
class Statement:
    """Both presets, call by call, with lists of all that ever came."""

    config: PrunerConfig
    past: list[Tensor] = field(default_factory=list)
    margin: float = math.inf

    def run(self, tokens: Tensor) -> list[list[int]]:
        """Return the rows kept of each frame, in order of position."""
        tokens = tokens.double()
        if self.config.history == "released":
            return self.released(tokens)
        return [self.causal(frame, tokens) for frame in tokens]

    def causal(self, frame: Tensor, call: Tensor) -> list[int]:
        spatial = frame.mean(0)
        window = self.past[-self.config.window :] if self.config.window else self.past
        temporal = torch.stack(window).mean(0) if window else None
        self.past.append(spatial)
        if self.config.strategy == "gaussian":
            at = quiet(call, self.config.channel_keep_ratio)
            return self.best(gaussian(frame[:, at], None if temporal is None else temporal[at]))
        novelty = []
        for token in frame:
            score = 1 - cosine(token, spatial)
            if temporal is not None:
                alpha = self.config.alpha
                score = alpha * (1 - cosine(token, temporal)) + (1 - alpha) * score
            novelty.append(score)
        return self.best(novelty)

    def released(self, call: Tensor) -> list[list[int]]:
        at = quiet(call, self.config.channel_keep_ratio)
        chosen = call[:, :, at]
        self.past.append(chosen.flatten(0, 1).mean(0))
        temporal = torch.stack(self.past).mean(0)
        return [self.best(gaussian(frame, temporal)) for frame in chosen]

    def best(self, novelty: list[float]) -> list[int]:
        k = self.config.kept_tokens(len(novelty))
        order = sorted(range(len(novelty)), key=lambda t: -novelty[t])
        if k < len(order):
            self.margin = min(self.margin, novelty[order[k - 1]] - novelty[order[k]])
        return sorted(order[:k])


def quiet(call: Tensor, share: float) -> list[int]:
    variance = call.flatten(0, 1).var(0, correction=0).tolist()
    keep = int(len(variance) * share)
    return sorted(range(len(variance)), key=variance.__getitem__)[:keep]


def gaussian(frame: Tensor, temporal: Tensor | None) -> list[float]:
    z = [token / token.norm() for token in frame]
    novelty = []
    for token in z:
        near = kernel(token, sum(z) / len(z))
        if temporal is not None:
            near += kernel(token, temporal / temporal.norm())
        novelty.append(-near)
    return novelty


def kernel(x: Tensor, c: Tensor) -> float:
    square = float((x - c).square().sum())
    return sum(math.exp(-square / (2 * a)) for a in (1 / 8, 1 / 4, 1 / 2, 1, 2))


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm().clamp(min=1e-8) * b.norm().clamp(min=1e-8)))


def stated(
    config: PrunerConfig, calls: list[int], seed: int, tokens: int = 20, width: int = 32
) -> tuple[list[Tensor], list[list[list[int]]]]:
    """Return calls of the given frame counts, and the rows that the statement keeps of each.

    Drawn anew until every choice is clear, so that none depends on how float32 rounds.
    """
    for draw in itertools.count(seed):
        generator = torch.Generator().manual_seed(draw)
        spread = torch.rand(width, generator=generator) + 0.5
        scene = torch.randn(width, generator=generator)
        clips = [
            scene + spread * torch.randn(frames, tokens, width, generator=generator)
            for frames in calls
        ]
        statement = Statement(config)
        kept = [statement.run(clip) for clip in clips]
        if statement.margin > CLEAR:
            return clips, kept
    raise AssertionError


@pytest.mark.parametrize(
    "config",
    [
        PrunerConfig.released(tokens_per_frame=7),
        PrunerConfig.released(keep_ratio=0.4, channel_keep_ratio=0.3),
        PrunerConfig.paper(),
        PrunerConfig.paper(tokens_per_frame=5, alpha=0.8),
        PrunerConfig.paper(alpha=1.0),
        PrunerConfig.paper(keep_ratio=0.3, window=3),
        PrunerConfig.paper(keep_ratio=0.3, window=1),
        PrunerConfig(strategy="gaussian", tokens_per_frame=6),
        PrunerConfig(strategy="gaussian", keep_ratio=0.25, window=4),
    ],
    ids=lambda config: f"{config.strategy}-{config.history}-{config.window}",
)
def test_keeps_the_same_rows_over_twenty_calls(config, seed):
    draw = random.Random(seed)
    calls = [draw.choice([1, 1, 2, 3, 5]) for _ in range(20)]
    clips, kept = stated(config, calls, seed)
    pruner = TokenPruner(config)
    for clip, rows in zip(clips, kept, strict=True):
        pruned = pruner(clip)
        assert pruned.index.tolist() == rows
        assert pruned.index.dtype == torch.int64
        expected = torch.stack([frame[at] for frame, at in zip(clip, rows, strict=True)])
        assert torch.equal(pruned.tokens, expected)


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_at_once_or_one_by_one(window, generator):
    config = PrunerConfig.paper(keep_ratio=0.3, window=window)
    clip = torch.randn(12, 25, 48, generator=generator) + torch.randn(48, generator=generator)
    whole = TokenPruner(config)(clip)
    for sizes in ([1] * 12, [5, 1, 6], [2, 10]):
        pruner = TokenPruner(config)
        parts = [pruner(part) for part in clip.split(sizes)]
        assert torch.equal(torch.cat([part.index for part in parts]), whole.index)
        assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)


def test_calls_matter_to_released(generator):
    clip = torch.randn(12, 25, 48, generator=generator)
    config = PrunerConfig.released(tokens_per_frame=5)
    whole, singly = TokenPruner(config)(clip), TokenPruner(config)
    assert not torch.equal(torch.cat([singly(frame[None]).index for frame in clip]), whole.index)
