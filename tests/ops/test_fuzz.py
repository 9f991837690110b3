"""Random shapes, strides, dtypes and extreme values against the definitions."""

from __future__ import annotations

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ops.cases import assert_chosen

from stc_kernels.testing import DTYPES, naive

OPS = torch.ops.stc_kernels
EXTREME = (0.0, -0.0, 1e-45, 1e-30, 1e-8, 1.0, -1.0, 65504.0, 1e18, 3e19, -3e38, 1e38)
GARBAGE = (torch.nan, torch.inf, -torch.inf)

seeds = st.integers(0, 2**31)
dtypes = st.sampled_from(DTYPES)
frames = st.integers(0, 5)
tokens = st.integers(1, 70)
channels = st.integers(1, 150)
fuzz = settings(max_examples=60, deadline=None)


def hostile(
    shape: tuple[int, ...], dtype: torch.dtype, g: torch.Generator, garbage: bool = True
) -> torch.Tensor:
    """Return tokens of random strides, with extreme values and garbage here and there."""
    steps = [int(torch.randint(1, 3, (), generator=g)) for _ in shape]
    order = torch.randperm(len(shape), generator=g).tolist()
    large = [shape[d] * steps[d] + 1 for d in order]
    x = torch.randn(large, generator=g)
    values = torch.tensor(EXTREME + (GARBAGE if garbage else ()))
    spots = torch.rand(large, generator=g) < torch.rand((), generator=g) * 0.02
    chosen = values[torch.randint(0, len(values), (int(spots.sum()),), generator=g)]
    x[spots] = chosen
    x = x.to(dtype).permute([order.index(d) for d in range(len(shape))])
    return x[tuple(slice(1, None, step) for step in steps)][tuple(slice(0, n) for n in shape)]


def same_garbage(actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Assert that both call the same tokens garbage and return which are not."""
    finite = expected.isfinite()
    assert torch.equal(actual.isfinite(), finite)
    return finite


@fuzz
@given(seeds, dtypes, frames, tokens, channels, st.sampled_from(["cosine", "l1"]))
def test_similarity_and_selection(seed, dtype, f, t, c, metric):
    g = torch.Generator().manual_seed(seed)
    current, reference = hostile((f, t, c), dtype, g), hostile((f, t, c), dtype, g)
    actual = OPS.patch_similarity(current, reference, None, metric)
    expected = naive("patch_similarity")(current, reference, None, metric)
    finite = same_garbage(actual, expected)
    scale = (
        1.0 if metric == "cosine" else (current.float() - reference.float()).abs().sum(-1)[finite]
    )
    assert ((actual - expected)[finite].abs() <= 1e-5 * scale + 1e-6).all()
    k = int(torch.randint(1, t + 1, (), generator=g))
    index, slot = OPS.select_dynamic(current, reference, k, None, metric)
    assert torch.equal(index, naive("topk_gather")(current, actual, k, False)[1])
    assert torch.equal((slot >= 0).sum(1), torch.full((f,), k))


@fuzz
@given(seeds, dtypes, frames, tokens, channels, st.booleans())
def test_merge_and_gather_are_exact(seed, dtype, f, t, c, with_residual):
    g = torch.Generator().manual_seed(seed)
    cached, residual = hostile((f, t, c), dtype, g), hostile((f, t, c), dtype, g)
    k = int(torch.randint(0, t + 1, (), generator=g))
    updated = hostile((f, k, c), dtype, g)
    slot = torch.randint(-1, max(k, 1) if k else 0, (f, t), generator=g).int()
    args = (updated, cached, slot, None, residual if with_residual else None)
    expected = naive("merge_tokens")(*args)
    torch.testing.assert_close(OPS.merge_tokens(*args), expected, rtol=0, atol=0, equal_nan=True)
    index = torch.randint(0, t, (f, k), generator=g)
    torch.testing.assert_close(
        OPS.gather_tokens(cached, index),
        cached.gather(1, index[..., None].expand(-1, -1, c)),
        rtol=0,
        atol=0,
        equal_nan=True,
    )


@fuzz
@given(seeds, dtypes, frames, tokens, channels, st.sampled_from(["dual_anchor", "gaussian"]))
def test_scores_and_pruning(seed, dtype, f, t, c, strategy):
    g = torch.Generator().manual_seed(seed)
    x = hostile((f, t, c), dtype, g)
    anchor = torch.randn(c, generator=g) if seed % 2 else None
    actual = OPS.anchor_scores(x, anchor, strategy)
    expected = naive("anchor_scores")(x, anchor, strategy)
    finite = same_garbage(actual, expected)
    torch.testing.assert_close(actual[finite], expected[finite], rtol=5e-5, atol=5e-5)
    k = int(torch.randint(1, t + 1, (), generator=g))
    kept, index = OPS.prune_tokens(x, k, anchor, strategy)
    worth = torch.where(finite, expected, -(10.0**9))
    assert_chosen(index, worth, k, largest=True, tolerance=5e-5)
    torch.testing.assert_close(
        kept, naive("gather_tokens")(x, index), rtol=0, atol=0, equal_nan=True
    )


@fuzz
@given(seeds, st.integers(1, 4), st.integers(1, 3000), st.booleans())
@example(seed=0, f=1, t=1, largest=True)
def test_selection_orders_every_float(seed, f, t, largest):
    g = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31, (f, t), generator=g, dtype=torch.int64).int()
    # Few distinct values, so that ties straddle the cut.
    scores = bits[:, torch.randint(0, max(1, t // 5), (t,), generator=g)].view(torch.float32)
    k = int(torch.randint(1, t + 1, (), generator=g))
    x = torch.zeros(f, t, 1)
    expected = naive("topk_gather")(x, scores, k, largest)[1]
    assert torch.equal(OPS.topk_gather(x, scores, k, largest)[1], expected)


@fuzz
@given(seeds, dtypes, frames, tokens, channels)
def test_quiet_channels(seed, dtype, f, t, c):
    g = torch.Generator().manual_seed(seed)
    # Extremes of float32 leave too little of the others' variance to tell equal from close.
    x = hostile((f, t, c), torch.float16, g).to(dtype)
    keep = int(torch.randint(1, c + 1, (), generator=g))
    actual, expected = OPS.quiet_channels(x, keep), naive("quiet_channels")(x, keep)
    rows = x.reshape(-1, c).double()
    variance = (rows - rows.mean(0)).square().mean(0).float().nan_to_num(torch.inf, torch.inf)
    # Sums in another order may round a variance to the float beside it.
    torch.testing.assert_close(variance[actual], variance[expected], rtol=3e-7, atol=0)


@fuzz
@given(seeds, dtypes, frames, tokens, channels)
def test_norms(seed, dtype, f, t, c):
    g = torch.Generator().manual_seed(seed)
    x = hostile((f, t, c), dtype, g, garbage=False).clamp(-1e4, 1e4)
    weight, bias = torch.randn(2, c, generator=g)
    k = int(torch.randint(0, t + 1, (), generator=g))
    index = torch.randint(0, t, (f, k), generator=g)
    actual = OPS.layer_norm_gather(x, index, weight, bias)
    expected = naive("layer_norm_gather")(x, index, weight, bias)
    assert torch.equal(actual[0], expected[0])
    places = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(actual[1], expected[1], rtol=places, atol=places)
