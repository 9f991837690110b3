"""`quiet_channels` against its definition."""

from __future__ import annotations

import torch
from ops.cases import dtypes, layouts, shapes

import stc_kernels
from stc_kernels.testing import integer_tokens, naive, random_tokens

definition = naive("quiet_channels")


@dtypes
@shapes
def test_random(shape, dtype, generator):
    tokens = random_tokens(*shape, dtype, generator=generator)
    for keep in {1, max(1, shape[2] // 2), shape[2]}:
        actual = stc_kernels.quiet_channels(tokens, keep)
        assert actual.dtype == torch.int64
        assert torch.equal(actual, definition(tokens, keep))


@dtypes
@layouts
def test_layouts(layout, dtype, generator):
    tokens = random_tokens(3, 20, 700, dtype, generator=generator, layout=layout)
    assert torch.equal(stc_kernels.quiet_channels(tokens, 350), definition(tokens, 350))


def test_ties_go_to_the_lower_channel(generator):
    tokens = integer_tokens(1, 4, 600, generator=generator, largest=1)
    assert torch.equal(stc_kernels.quiet_channels(tokens, 600), definition(tokens, 600))
    constant = torch.full((2, 3, 5), 7.25)
    assert stc_kernels.quiet_channels(constant, 4).tolist() == [0, 1, 2, 3]


def test_a_large_mean_cancels_nothing(generator):
    # Differences of one unit in the last place about a million.
    steps = torch.randint(0, 40, (8, 50, 64), generator=generator)
    tokens = 1e6 + steps.float() * 0.0625
    order = stc_kernels.quiet_channels(tokens, 64)
    exact = steps.double().flatten(0, 1).var(0, unbiased=False)
    assert (exact[order].diff() >= 0).all()


def test_garbage_comes_last(generator):
    tokens = random_tokens(2, 9, 6, generator=generator)
    tokens[0, 4, 1] = torch.nan
    tokens[1, 0, 3] = torch.inf
    assert stc_kernels.quiet_channels(tokens, 6).tolist()[-2:] == [1, 3]


def test_no_frames():
    assert stc_kernels.quiet_channels(torch.empty(0, 5, 8), 3).tolist() == [0, 1, 2]
