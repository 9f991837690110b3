"""`anchor_scores` against its definition."""

from __future__ import annotations

import pytest
import torch
from ops.cases import dtypes, extreme_pasts, layouts, shapes, strategies

import stc_kernels
from stc_kernels.testing import naive, random_tokens

definition = naive("anchor_scores")
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


@dtypes
@strategies
@shapes
@pytest.mark.parametrize("past", ["none", "one", "each"])
def test_random(past, shape, strategy, dtype, generator):
    frames, _, channels = shape
    tokens = random_tokens(*shape, dtype, generator=generator)
    some = torch.randperm(channels, generator=generator)[: max(1, channels // 2)]
    for picked in (None, some):
        width = channels if picked is None else len(picked)
        anchor = {
            "none": None,
            "one": torch.randn(width, generator=generator),
            "each": torch.randn(frames, width, generator=generator).to(dtype),
        }[past]
        actual = stc_kernels.anchor_scores(tokens, anchor, strategy, 0.3, picked)
        assert actual.dtype == torch.float32 and actual.shape == shape[:2]
        expected = definition(tokens, anchor, strategy, 0.3, picked)
        torch.testing.assert_close(actual, expected, **TOLERANCE)


@dtypes
@strategies
@layouts
def test_layouts(layout, strategy, dtype, generator):
    tokens = random_tokens(3, 40, 50, dtype, generator=generator, layout=layout)
    anchor = torch.randn(6, 100, generator=generator)[::2, ::2]
    actual = stc_kernels.anchor_scores(tokens, anchor, strategy)
    torch.testing.assert_close(actual, definition(tokens, anchor, strategy), **TOLERANCE)


@strategies
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("frames", [1, 2, 9])
def test_any_number_of_threads(frames, threads, strategy, generator):
    # Large enough that a single frame is read in parts.
    tokens = random_tokens(frames, 83, 400, generator=generator)
    anchor = torch.randn(400, generator=generator)
    expected = definition(tokens, anchor, strategy)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        actual = stc_kernels.anchor_scores(tokens, anchor, strategy)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(actual, expected, **TOLERANCE)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_alpha_weighs_the_past(alpha, generator):
    tokens = random_tokens(2, 30, 16, generator=generator)
    anchor = torch.randn(16, generator=generator)
    spatial = stc_kernels.anchor_scores(tokens)
    temporal = stc_kernels.anchor_scores(tokens, anchor, alpha=1.0)
    both = stc_kernels.anchor_scores(tokens, anchor, alpha=alpha)
    torch.testing.assert_close(both, alpha * temporal + (1 - alpha) * spatial)


def test_equal_tokens_are_not_novel():
    scores = stc_kernels.anchor_scores(torch.full((1, 4, 8), 3.0), torch.full((8,), 2.0))
    torch.testing.assert_close(scores, torch.zeros(1, 4), rtol=0, atol=1e-6)


@dtypes
@strategies
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_garbage_spoils_its_own_score_alone(bad, strategy, dtype, generator):
    tokens = random_tokens(2, 83, 400, dtype, generator=generator)
    tokens[0, 7, 3] = bad
    tokens[0, 82, 399] = bad
    anchor = torch.randn(400, generator=generator)
    scores = stc_kernels.anchor_scores(tokens, anchor, strategy)
    assert (~scores.isfinite()).nonzero().tolist() == [[0, 7], [0, 82]]
    clean = torch.cat([tokens[:1, :7], tokens[:1, 8:82]], 1)
    alone = stc_kernels.anchor_scores(clean, anchor, strategy)[0]
    torch.testing.assert_close(torch.cat([scores[0, :7], scores[0, 8:82]]), alone, **TOLERANCE)


@strategies
def test_overflow_is_garbage(strategy, generator):
    tokens = random_tokens(1, 12, 9, generator=generator)
    tokens[0, 5] = 1e25
    scores = stc_kernels.anchor_scores(tokens, None, strategy)
    assert (~scores.isfinite()).nonzero().tolist() == [[0, 5]]
    expected = definition(tokens, None, strategy)
    torch.testing.assert_close(scores, expected, equal_nan=True, **TOLERANCE)


@dtypes
@strategies
@pytest.mark.parametrize("channels", [1, 130])
def test_a_past_of_any_size(channels, strategy, dtype, generator):
    tokens = random_tokens(5, 31, channels, dtype, generator=generator)
    some = torch.arange(channels).flip(0)
    for name, past in extreme_pasts(5, channels, generator):
        for anchor in (past, past.to(dtype)):
            for picked in (None, some):
                actual = stc_kernels.anchor_scores(tokens, anchor, strategy, 0.5, picked)
                expected = definition(tokens, anchor, strategy, 0.5, picked)
                torch.testing.assert_close(
                    actual, expected, equal_nan=True, **TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
                )


def test_a_past_too_large_to_square_is_nowhere_near(generator):
    tokens = random_tokens(1, 12, 16, generator=generator)
    for past in (torch.full((16,), 1e20), torch.randn(16, generator=generator) * 1e37):
        scores = stc_kernels.anchor_scores(tokens, past, "gaussian")
        # exp(−1/2a) over the five bandwidths: what a unit vector is to the origin.
        origin = sum(torch.exp(torch.tensor(-1 / (2 * a))) for a in (1 / 8, 1 / 4, 1 / 2, 1, 2))
        alone = stc_kernels.anchor_scores(tokens, None, "gaussian")
        torch.testing.assert_close(scores, alone - origin, **TOLERANCE)


@strategies
def test_zero_tokens(strategy):
    zeros = torch.zeros(1, 3, 8)
    for anchor in (None, torch.ones(8), torch.zeros(8)):
        actual = stc_kernels.anchor_scores(zeros, anchor, strategy)
        torch.testing.assert_close(actual, definition(zeros, anchor, strategy))
