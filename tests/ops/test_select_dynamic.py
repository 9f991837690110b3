"""`select_dynamic` against its definition."""

from __future__ import annotations

import pytest
import torch
from ops.cases import dtypes, layouts, metrics, shapes

import stc_kernels
from stc_kernels.testing import integer_tokens, naive, random_tokens

definition = naive("select_dynamic")


def counts(tokens: int) -> set[int]:
    return {1, max(1, tokens // 4), max(1, tokens - 1), tokens}


@dtypes
@shapes
def test_random(shape, dtype, generator):
    frames, tokens, _ = shape
    current = random_tokens(*shape, dtype, generator=generator)
    reference = random_tokens(*shape, dtype, generator=generator)
    scores = stc_kernels.patch_similarity(current, reference)
    for k in counts(tokens):
        index, slot = stc_kernels.select_dynamic(current, reference, k)
        # The very scores that were compared are known, so the choice must be exact.
        assert torch.equal(index, naive("topk_gather")(current, scores, k, False)[1])
        assert slot.dtype == torch.int32 and slot.shape == (frames, tokens)
        places = torch.arange(k, dtype=torch.int32).expand(frames, k)
        assert torch.equal(slot.gather(1, index), places)
        assert int((slot < 0).sum()) == frames * (tokens - k) and (slot >= -1).all()


@dtypes
@metrics
@shapes
def test_ties_are_exact(shape, metric, dtype, generator):
    # Sums of small integers are exact in any order, so every score equals the definition's.
    current = integer_tokens(*shape, dtype, generator=generator)
    reference = integer_tokens(*shape, dtype, generator=generator)
    for k in counts(shape[1]):
        actual = stc_kernels.select_dynamic(current, reference, k, metric=metric)
        for a, b in zip(actual, definition(current, reference, k, metric=metric), strict=True):
            assert torch.equal(a, b)


@layouts
def test_layouts(layout, generator):
    current = random_tokens(4, 30, 24, generator=generator, layout=layout)
    reference = random_tokens(4, 30, 24, generator=generator, layout=layout)
    plain = stc_kernels.select_dynamic(current.contiguous(), reference.contiguous(), 7)
    for a, b in zip(stc_kernels.select_dynamic(current, reference, 7), plain, strict=True):
        assert torch.equal(a, b)


def test_reference_index(generator):
    current = random_tokens(6, 12, 16, generator=generator)
    reference = random_tokens(3, 12, 16, generator=generator)
    held = torch.tensor([2, 2, 0, 1, 0, 2])
    whole = stc_kernels.select_dynamic(current, reference, 5, held)
    for f in range(6):
        alone = stc_kernels.select_dynamic(current[f : f + 1], reference[held[f]][None], 5)
        assert torch.equal(whole[0][f], alone[0][0]) and torch.equal(whole[1][f], alone[1][0])


def test_all_equal_takes_the_first():
    tokens = torch.ones(2, 10, 4)
    index, slot = stc_kernels.select_dynamic(tokens, tokens, 3)
    assert index.tolist() == [[0, 1, 2]] * 2
    assert slot.tolist() == [[0, 1, 2] + [-1] * 7] * 2


@dtypes
@metrics
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_garbage_is_recomputed_first(bad, metric, dtype, generator):
    current = random_tokens(2, 50, 12, dtype, generator=generator)
    reference = current.clone()
    reference[:, :40] = random_tokens(2, 40, 12, dtype, generator=generator)
    current[:, 47, 3] = bad
    reference[:, 45, 0] = bad
    index, _ = stc_kernels.select_dynamic(current, reference, 2, metric=metric)
    assert index.tolist() == [[45, 47]] * 2
    index, _ = stc_kernels.select_dynamic(current, reference, 1, metric=metric)
    assert index.tolist() == [[45]] * 2


def test_a_frame_of_garbage():
    garbage = torch.full((1, 9, 4), torch.nan)
    index, slot = stc_kernels.select_dynamic(garbage, torch.ones(1, 9, 4), 4)
    assert index.tolist() == [[0, 1, 2, 3]] and slot.tolist() == [[0, 1, 2, 3] + [-1] * 5]
