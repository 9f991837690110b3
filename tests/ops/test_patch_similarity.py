"""`patch_similarity` against its definition."""

from __future__ import annotations

import pytest
import torch
from ops.cases import dtypes, layouts, metrics, shapes

import stc_kernels
from stc_kernels.testing import integer_tokens, naive, random_tokens, score_tolerance

definition = naive("patch_similarity")


def close(actual: torch.Tensor, expected: torch.Tensor, channels: int, metric: str) -> None:
    # The sums of cosine are divided by their own size; the others grow with the channels.
    scale = 1.0 if metric == "cosine" else 4.0 * channels**0.5
    tolerance = score_tolerance(channels)
    tolerance["atol"] *= scale
    torch.testing.assert_close(actual, expected, equal_nan=True, **tolerance)


@dtypes
@metrics
@shapes
def test_random(shape, metric, dtype, generator):
    current = random_tokens(*shape, dtype, generator=generator)
    reference = random_tokens(*shape, dtype, generator=generator)
    actual = stc_kernels.patch_similarity(current, reference, metric=metric)
    assert actual.dtype == torch.float32 and actual.shape == shape[:2]
    close(actual, definition(current, reference, metric=metric), shape[2], metric)


@dtypes
@layouts
def test_layouts(layout, dtype, generator):
    current = random_tokens(3, 40, 50, dtype, generator=generator, layout=layout)
    reference = random_tokens(3, 40, 50, dtype, generator=generator, layout=layout)
    actual = stc_kernels.patch_similarity(current, reference)
    close(actual, definition(current, reference), 50, "cosine")


@metrics
def test_reference_index(metric, generator):
    current = random_tokens(7, 11, 20, generator=generator)
    reference = random_tokens(4, 11, 20, generator=generator)
    index = torch.randint(0, 4, (7,), generator=generator)
    actual = stc_kernels.patch_similarity(current, reference, index, metric)
    close(actual, definition(current, reference[index], metric=metric), 20, metric)
    strided = torch.stack([index, index], 1)[:, 0]
    assert torch.equal(stc_kernels.patch_similarity(current, reference, strided, metric), actual)


def test_one_reference_serves_all_frames(generator):
    current = random_tokens(5, 6, 8, generator=generator)
    reference = random_tokens(1, 6, 8, generator=generator)
    actual = stc_kernels.patch_similarity(current, reference)
    close(actual, definition(current, reference.expand(5, -1, -1)), 8, "cosine")


@dtypes
def test_integers_are_exact(dtype, generator):
    current = integer_tokens(4, 31, 67, dtype, generator=generator)
    reference = integer_tokens(4, 31, 67, dtype, generator=generator)
    for metric in ("dot", "l1", "l2"):
        actual = stc_kernels.patch_similarity(current, reference, metric=metric)
        assert torch.equal(actual, definition(current, reference, metric=metric))


@dtypes
def test_zero_tokens(dtype):
    zeros, ones = torch.zeros(1, 2, 9, dtype=dtype), torch.ones(1, 2, 9, dtype=dtype)
    assert torch.equal(stc_kernels.patch_similarity(zeros, ones), torch.zeros(1, 2))
    assert torch.equal(stc_kernels.patch_similarity(zeros, zeros), torch.zeros(1, 2))


@dtypes
@metrics
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_not_finite(bad, metric, dtype, generator):
    current = random_tokens(2, 19, 21, dtype, generator=generator)
    reference = random_tokens(2, 19, 21, dtype, generator=generator)
    current[0, 3, 20] = bad
    reference[1, 5, 0] = bad
    actual = stc_kernels.patch_similarity(current, reference, metric=metric)
    expected = definition(current, reference, metric=metric)
    garbage = ~expected.isfinite()
    assert garbage.sum() == 2 and torch.equal(~actual.isfinite(), garbage)
    close(actual[~garbage], expected[~garbage], 21, metric)


def test_just_short_of_overflow():
    # Each square fits in float32, their sum does not.
    large = torch.full((1, 1, 1), 1.8e19)
    assert stc_kernels.patch_similarity(large, large).item() == 1.0
    assert definition(large, large).item() == 1.0


def test_overflow_is_garbage():
    current = torch.full((1, 3, 4), 1e20)
    current[0, 0] = 1.0
    actual = stc_kernels.patch_similarity(current, torch.ones(1, 3, 4))
    assert actual.isfinite().tolist() == [[True, False, False]]
