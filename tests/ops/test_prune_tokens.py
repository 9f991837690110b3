"""`prune_tokens` against its definition."""

from __future__ import annotations

import pytest
import torch
from ops.cases import assert_chosen, dtypes, layouts, shapes, strategies

import stc_kernels
from stc_kernels.testing import naive, random_tokens

definition = naive("prune_tokens")


@dtypes
@strategies
@shapes
def test_random(shape, strategy, dtype, generator):
    frames, count, channels = shape
    tokens = random_tokens(*shape, dtype, generator=generator)
    for anchor in (None, torch.randn(frames, channels, generator=generator)):
        for k in {1, max(1, count // 3), count}:
            kept, index = stc_kernels.prune_tokens(tokens, k, anchor, strategy)
            scores = stc_kernels.anchor_scores(tokens, anchor, strategy)
            expected = naive("topk_gather")(tokens, scores, k)
            assert torch.equal(kept, expected[0]) and torch.equal(index, expected[1])
            exact = naive("anchor_scores")(tokens, anchor, strategy)
            assert_chosen(index, exact, k, largest=True, tolerance=2e-5)


@strategies
def test_the_choice_is_the_definitions(strategy, generator):
    # Novelties far apart: tokens turned away from a common direction by distinct angles.
    angles = torch.rand(5, 196, generator=generator).argsort(1) * (1.4 / 196)
    tokens = torch.zeros(5, 196, 64)
    tokens[..., 0], tokens[..., 1] = angles.cos(), angles.sin()
    tokens = tokens * (1 + torch.rand(5, 196, 1, generator=generator))
    anchor = torch.zeros(64).index_fill_(0, torch.tensor([0]), 1.0)
    kept, index = stc_kernels.prune_tokens(tokens, 64, anchor, strategy, 1.0)
    expected = definition(tokens.double().float(), 64, anchor, strategy, 1.0)
    assert torch.equal(index, expected[1]) and torch.equal(kept, expected[0])


@dtypes
@layouts
def test_layouts(layout, dtype, generator):
    tokens = random_tokens(3, 25, 40, dtype, generator=generator, layout=layout)
    plain = stc_kernels.prune_tokens(tokens.contiguous(), 9)
    for a, b in zip(stc_kernels.prune_tokens(tokens, 9), plain, strict=True):
        assert torch.equal(a, b)


def test_channels(generator):
    tokens = random_tokens(2, 30, 20, generator=generator)
    picked = torch.tensor([4, 19, 0, 4])
    anchor = torch.randn(4, generator=generator)
    actual = stc_kernels.prune_tokens(tokens, 6, anchor, "gaussian", 0.5, picked)
    alone = stc_kernels.prune_tokens(tokens[:, :, picked], 6, anchor, "gaussian")
    assert torch.equal(actual[1], alone[1])
    assert torch.equal(actual[0], naive("gather_tokens")(tokens, actual[1]))


@strategies
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_garbage_is_not_sent_on(bad, strategy, generator):
    tokens = random_tokens(2, 40, 16, generator=generator)
    tokens[:, 3, 5] = bad
    tokens[:, 20] = bad
    kept, index = stc_kernels.prune_tokens(tokens, 38, None, strategy)
    assert kept.isfinite().all()
    assert index.tolist() == [[t for t in range(40) if t not in (3, 20)]] * 2


def test_a_frame_of_equal_tokens_keeps_the_first():
    _, index = stc_kernels.prune_tokens(torch.ones(1, 8, 4), 3)
    assert index.tolist() == [[0, 1, 2]]
