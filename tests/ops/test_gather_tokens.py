"""`gather_tokens` against its definition."""

from __future__ import annotations

import torch
from ops.cases import dtypes, layouts, shapes

import stc_kernels
from stc_kernels.testing import naive, random_tokens

definition = naive("gather_tokens")


@dtypes
@shapes
def test_random(shape, dtype, generator):
    tokens = random_tokens(*shape, dtype, generator=generator)
    # In any order, and more than once.
    index = torch.randint(0, shape[1], (shape[0], shape[1] + 2), generator=generator)
    actual = stc_kernels.gather_tokens(tokens, index)
    assert actual.is_contiguous() and torch.equal(actual, definition(tokens, index))


@dtypes
@layouts
def test_layouts(layout, dtype, generator):
    tokens = random_tokens(4, 13, 18, dtype, generator=generator, layout=layout)
    index = torch.randint(0, 13, (6, 8), generator=generator)[::2].flip(0)
    index = torch.cat([index, index[:1]])
    assert not index[:, ::2].is_contiguous()
    actual = stc_kernels.gather_tokens(tokens, index[:, ::2])
    assert torch.equal(actual, definition(tokens, index[:, ::2]))


def test_nothing_chosen(generator):
    tokens = random_tokens(2, 5, 3, generator=generator)
    index = torch.empty(2, 0, dtype=torch.int64)
    assert stc_kernels.gather_tokens(tokens, index).shape == (2, 0, 3)


def test_garbage_is_copied_as_it_is():
    tokens = torch.tensor([[[torch.nan], [torch.inf], [-0.0]]])
    index = torch.tensor([[2, 1, 0]])
    actual = stc_kernels.gather_tokens(tokens, index).view(torch.int32)
    assert torch.equal(actual, tokens.flip(1).contiguous().view(torch.int32))
