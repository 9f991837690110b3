"""`topk_gather` against its definition."""

from __future__ import annotations

import pytest
import torch
from ops.cases import assert_chosen, dtypes, layouts, shapes

import stc_kernels
from stc_kernels.testing import naive, random_tokens

definition = naive("topk_gather")
largest_or_not = pytest.mark.parametrize("largest", [True, False])


def same(actual, expected) -> None:
    assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])


@dtypes
@shapes
@largest_or_not
def test_random(largest, shape, dtype, generator):
    tokens = random_tokens(*shape, dtype, generator=generator)
    scores = torch.randn(shape[:2], generator=generator)
    for k in {1, max(1, shape[1] // 3), shape[1]}:
        actual = stc_kernels.topk_gather(tokens, scores, k, largest)
        same(actual, definition(tokens, scores, k, largest))
        assert_chosen(actual[1], scores, k, largest=largest, tolerance=0.0)


@largest_or_not
def test_ties(largest, generator):
    tokens = random_tokens(8, 100, 3, generator=generator)
    scores = torch.randint(-2, 3, (8, 100), generator=generator).float()
    scores[scores == 0] *= torch.tensor([-1.0, 1.0])[torch.randint(0, 2, (1,), generator=generator)]
    for k in (1, 20, 50, 99):
        same(
            stc_kernels.topk_gather(tokens, scores, k, largest),
            definition(tokens, scores, k, largest),
        )


@largest_or_not
def test_zeros_of_both_signs_tie(largest):
    scores = torch.tensor([[-0.0, 0.0, -0.0, 0.0]])
    _, index = stc_kernels.topk_gather(torch.zeros(1, 4, 1), scores, 2, largest)
    assert index.tolist() == [[0, 1]]


@largest_or_not
def test_every_kind_of_float_is_ordered(largest, generator):
    bits = torch.randint(-(2**31), 2**31, (4, 500), generator=generator, dtype=torch.int64)
    scores = bits.int().view(torch.float32)
    tokens = random_tokens(4, 500, 2, generator=generator)
    same(
        stc_kernels.topk_gather(tokens, scores, 123, largest),
        definition(tokens, scores, 123, largest),
    )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_garbage(bad, generator):
    tokens = random_tokens(1, 6, 4, generator=generator)
    scores = torch.tensor([[bad, 5.0, 1.0, bad, 3.0, 2.0]])
    _, index = stc_kernels.topk_gather(tokens, scores, 4)
    assert index.tolist() == [[1, 2, 4, 5]]
    _, index = stc_kernels.topk_gather(tokens, scores, 5)
    assert index.tolist() == [[0, 1, 2, 4, 5]]
    _, index = stc_kernels.topk_gather(tokens, scores, 3, largest=False)
    assert index.tolist() == [[0, 2, 3]]


@dtypes
@layouts
def test_layouts(layout, dtype, generator):
    tokens = random_tokens(3, 14, 22, dtype, generator=generator, layout=layout)
    scores = torch.randn(14, 6, generator=generator).t()[::2]
    same(stc_kernels.topk_gather(tokens, scores, 5), definition(tokens, scores, 5))
