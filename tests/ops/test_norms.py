"""`layer_norm_gather` and `merge_tokens_norm` against their definitions."""

from __future__ import annotations

import pytest
import torch
from ops.cases import dtypes, layouts, shapes

import stc_kernels
from stc_kernels.testing import naive, random_tokens


def assert_same(actual, expected) -> None:
    """Assert that the rows are equal and their norms are to the last place or two."""
    assert torch.equal(actual[0], expected[0])
    dtype = expected[1].dtype
    tolerance = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    assert actual[1].dtype == dtype and actual[1].is_contiguous()
    torch.testing.assert_close(
        actual[1], expected[1], rtol=tolerance, atol=tolerance, equal_nan=True
    )


def slots(frames: int, tokens: int, k: int, generator: torch.Generator) -> torch.Tensor:
    order = torch.rand(frames, tokens, generator=generator).argsort(1).int()
    return torch.where(order < k, order, -1)


@dtypes
@shapes
@pytest.mark.parametrize("optional", [False, True])
def test_random(optional, shape, dtype, generator):
    frames, tokens, channels = shape
    k = max(1, tokens // 4)
    x = random_tokens(*shape, dtype, generator=generator)
    chosen = random_tokens(frames, k, channels, dtype, generator=generator)
    index = torch.randint(0, tokens, (frames, k), generator=generator)
    weight, bias = torch.randn(2, channels, generator=generator)
    bias, extra = (bias.to(dtype), chosen) if optional else (None, None)
    args = (x, index, weight, bias, extra, 1e-5)
    assert_same(stc_kernels.layer_norm_gather(*args), naive("layer_norm_gather")(*args))

    cached = random_tokens(2, tokens, channels, dtype, generator=generator)
    held = torch.randint(0, 2, (frames,), generator=generator)
    slot = slots(frames, tokens, k, generator)
    merge = (chosen, cached, slot, weight, bias, held, x if optional else None, 1e-6)
    assert_same(stc_kernels.merge_tokens_norm(*merge), naive("merge_tokens_norm")(*merge))


@dtypes
@layouts
def test_layouts(layout, dtype, generator):
    def tokens(count: int) -> torch.Tensor:
        return random_tokens(3, count, 37, dtype, generator=generator, layout=layout)

    x, added, cached = tokens(20), tokens(6), tokens(20)
    weight = torch.randn(74, generator=generator)[::2].to(dtype)
    index = torch.randint(0, 20, (6, 3), generator=generator).t()
    args = (x, index, weight, None, added)
    assert_same(stc_kernels.layer_norm_gather(*args), naive("layer_norm_gather")(*args))
    merge = (added, cached, slots(3, 20, 6, generator), weight, None, None, x)
    assert_same(stc_kernels.merge_tokens_norm(*merge), naive("merge_tokens_norm")(*merge))


def test_a_large_mean_cancels_nothing(generator):
    x = 1000 + random_tokens(1, 5, 1152, generator=generator)
    index = torch.arange(5)[None]
    _, normed = stc_kernels.layer_norm_gather(x, index, torch.ones(1152), eps=0.0)
    exact = torch.nn.functional.layer_norm(x.double(), (1152,), eps=0.0)
    torch.testing.assert_close(normed.double(), exact, rtol=0, atol=2e-3)


def test_garbage_stays_in_its_row(generator):
    x = random_tokens(1, 6, 40, generator=generator)
    x[0, 2, 39] = torch.nan
    _, normed = stc_kernels.layer_norm_gather(x, torch.arange(6)[None], torch.ones(40))
    assert normed.isfinite().all(-1).tolist() == [[True, True, False, True, True, True]]
