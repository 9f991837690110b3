"""`merge_tokens` against its definition."""

from __future__ import annotations

import pytest
import torch
from ops.cases import dtypes, layouts, shapes

import stc_kernels
from stc_kernels.testing import naive, random_tokens

definition = naive("merge_tokens")


def slots(frames: int, tokens: int, k: int, generator: torch.Generator) -> torch.Tensor:
    order = torch.rand(frames, tokens, generator=generator).argsort(1).int()
    return torch.where(order < k, order, -1)


@dtypes
@shapes
@pytest.mark.parametrize("with_residual", [False, True])
def test_random(with_residual, shape, dtype, generator):
    frames, tokens, channels = shape
    cached = random_tokens(3, tokens, channels, dtype, generator=generator)
    held = torch.randint(0, 3, (frames,), generator=generator)
    residual = random_tokens(*shape, dtype, generator=generator) if with_residual else None
    for k in {0, 1, max(1, tokens // 4), tokens}:
        updated = random_tokens(frames, k, channels, dtype, generator=generator)
        slot = slots(frames, tokens, k, generator)
        actual = stc_kernels.merge_tokens(updated, cached, slot, held, residual)
        assert actual.is_contiguous() and actual.dtype == dtype
        assert torch.equal(actual, definition(updated, cached, slot, held, residual))


@dtypes
@layouts
def test_layouts(layout, dtype, generator):
    def tokens(frames: int, count: int) -> torch.Tensor:
        return random_tokens(frames, count, 37, dtype, generator=generator, layout=layout)

    updated, cached, residual = tokens(4, 6), tokens(4, 21), tokens(4, 21)
    slot = slots(4, 21, 6, generator).t().contiguous().t()
    actual = stc_kernels.merge_tokens(updated, cached, slot, None, residual)
    assert torch.equal(actual, definition(updated, cached, slot, None, residual))


def test_residual_is_added_to_reused_tokens_alone():
    updated, cached = torch.full((1, 1, 2), 5.0), torch.full((1, 3, 2), 7.0)
    slot = torch.tensor([[-1, 0, -1]], dtype=torch.int32)
    out = stc_kernels.merge_tokens(updated, cached, slot, residual=torch.full((1, 3, 2), 100.0))
    assert out[0, :, 0].tolist() == [107.0, 5.0, 107.0]


def test_a_slot_may_serve_several_tokens(generator):
    updated, cached = random_tokens(1, 2, 5, generator=generator), torch.zeros(1, 4, 5)
    slot = torch.tensor([[1, 1, -1, 0]], dtype=torch.int32)
    out = stc_kernels.merge_tokens(updated, cached, slot)
    assert torch.equal(out[0, 0], updated[0, 1]) and torch.equal(out[0, 1], updated[0, 1])
    assert torch.equal(out[0, 3], updated[0, 0]) and not out[0, 2].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_sums_round_as_torch_does(dtype):
    # Every pair of a few hundred values of all magnitudes, subnormal and overflowing ones too.
    bits = torch.arange(-(2**15), 2**15, 331, dtype=torch.int16)
    values = bits.view(dtype)
    a, b = torch.meshgrid(values, values, indexing="ij")
    a, b = a.reshape(1, 1, -1).contiguous(), b.reshape(1, 1, -1).contiguous()
    empty = torch.empty(1, 0, a.shape[2], dtype=dtype)
    slot = torch.full((1, 1), -1, dtype=torch.int32)
    out = stc_kernels.merge_tokens(empty, a, slot, residual=b)
    torch.testing.assert_close(out, a + b, rtol=0, atol=0, equal_nan=True)


@dtypes
def test_garbage_stays_where_it_is(dtype, generator):
    cached = random_tokens(1, 8, 19, dtype, generator=generator)
    cached[0, 2, 18] = torch.nan
    updated = random_tokens(1, 2, 19, dtype, generator=generator)
    updated[0, 1, 0] = torch.inf
    slot = torch.tensor([[0, -1, -1, 1, -1, -1, -1, -1]], dtype=torch.int32)
    out = stc_kernels.merge_tokens(updated, cached, slot, residual=torch.ones_like(cached))
    assert (~out.isfinite()).nonzero().tolist() == [[0, 2, 18], [0, 3, 0]]
