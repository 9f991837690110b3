"""Every Triton launcher against the definition, on CPU tensors under Triton's interpreter.

Run by ``test_interpreter.py`` in a process of its own: TRITON_INTERPRET must be set before triton
is imported. Results are poisoned, so that what a kernel doesn't write shows.
"""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from ops.cases import extreme_pasts

from stc_kernels import _launching
from stc_kernels.testing import integer_tokens, naive, random_tokens

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
strategies = pytest.mark.parametrize("strategy", ["dual_anchor", "gaussian"])
layouts = pytest.mark.parametrize("layout", ["sliced", "transposed", "reversed_frames", "expanded"])
CASES = [
    ((1, 1, 1), F32),
    ((2, 63, 7), F16),
    ((1, 196, 72), F32),
    ((2, 17, 600), F16),
    ((1, 17, 130), BF16),
    ((0, 5, 8), F32),
]
cases = pytest.mark.parametrize(
    ("shape", "dtype"), CASES, ids=[f"{'x'.join(map(str, s))}-{str(d)[6:]}" for s, d in CASES]
)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _poisoned():
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all() and torch.empty(3, dtype=torch.int64).max() > 10**9
    yield
    torch.use_deterministic_algorithms(False)


def launcher(op):
    return getattr(import_module(f"stc_kernels.ops.{op}.launch"), op)


def held_against(frames, references, generator):
    return torch.randint(0, references, (frames,), generator=generator)


def choice(frames, tokens, k, generator):
    """Return a choice of k tokens a frame, and each token's place in it."""
    index = torch.rand(frames, tokens, generator=generator).argsort(1)[:, :k].sort(1).values
    slot = torch.full((frames, tokens), -1, dtype=torch.int32)
    slot.scatter_(1, index, torch.arange(k, dtype=torch.int32).expand(frames, k))
    return index, slot


def assert_equal(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def assert_kept(actual, tokens, scores, k, tolerance):
    """Assert a choice of the k highest scores, exact where they differ by more than tolerance."""
    kept, index = actual
    assert index.dtype == torch.int64 and (index.diff(dim=1) > 0).all()
    assert_equal([kept], [tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))])
    worth = torch.where(scores.isfinite(), scores, -1e30)
    for f in range(tokens.shape[0]):
        chosen = torch.zeros(tokens.shape[1], dtype=torch.bool).index_fill_(0, index[f], True)
        if k < tokens.shape[1]:
            assert worth[f][chosen].min() >= worth[f][~chosen].max() - tolerance


@pytest.mark.parametrize("metric", ["cosine", "dot", "l1", "l2"])
@cases
def test_patch_similarity(shape, dtype, metric, generator):
    a = random_tokens(*shape, dtype, generator=generator)
    b = random_tokens(*shape, dtype, generator=generator)
    actual = launcher("patch_similarity")(a, b, None, metric)
    scale = max(1.0, shape[2] / 30)
    expected = naive("patch_similarity")(a, b, None, metric)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("op", ["patch_similarity", "select_dynamic"])
@layouts
def test_references_in_any_layout(layout, op, generator):
    current = integer_tokens(5, 19, 9, F16, generator=generator)
    reference = random_tokens(3, 19, 9, F16, generator=generator, layout=layout)
    held = held_against(5, 3, generator)
    k = (4,) if op == "select_dynamic" else ()
    for b, index in ((reference, held), (reference[:1], None), (reference, held * 0)):
        actual = launcher(op)(current, b, *k, index, "l1")
        expected = naive(op)(current, b, *k, index, "l1")
        torch.testing.assert_close(actual, expected, **CLOSE)
    outside = torch.tensor([0, 3, 1, -1, 2])
    similarity = launcher("patch_similarity")(current, reference, outside)
    assert similarity.isnan().all(1).tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("metric", ["cosine", "dot", "l1", "l2"])
@cases
def test_select_dynamic(shape, dtype, metric, generator):
    a = integer_tokens(*shape, dtype, generator=generator, largest=1)
    b = integer_tokens(*shape, dtype, generator=generator, largest=1)
    for k in {(shape[1] + 2) // 3, shape[1]} if metric == "l1" else {max(1, shape[1] // 4)}:
        actual = launcher("select_dynamic")(a, b, k, None, metric)
        assert_equal(actual, naive("select_dynamic")(a, b, k, None, metric))


def test_select_dynamic_takes_what_is_not_finite_first(generator):
    a, b = (random_tokens(2, 63, 12, generator=generator) for _ in range(2))
    a[0, 5, 3], a[0, 61, 0], b[0, 30, 1], a[1, 7] = torch.nan, torch.inf, -torch.inf, 3e19
    for metric in ("cosine", "l2"):
        actual = launcher("select_dynamic")(a, b, 3, None, metric)
        assert_equal(actual, naive("select_dynamic")(a, b, 3, None, metric))
        assert actual[0][0].tolist() == [5, 30, 61]


@cases
def test_topk_gather(shape, dtype, generator):
    frames, count, _ = shape
    tokens = random_tokens(*shape, dtype, generator=generator)
    many_ties = torch.randint(-2, 3, (frames, count), generator=generator).float() * -0.0
    many_ties = many_ties + torch.randint(-2, 3, (frames, count), generator=generator)
    rough = torch.randn(frames, count, generator=generator)
    rough[rough > 1], rough[rough < -1], rough[rough.abs() < 0.1] = torch.inf, torch.nan, -torch.inf
    third, strided = (count + 2) // 3, rough.t().contiguous().t()
    for scores, k in ((many_ties, third), (rough, third), (strided, 1), (many_ties * 0, count)):
        for largest in (True, False):
            actual = launcher("topk_gather")(tokens, scores, k, largest)
            assert_equal(actual, naive("topk_gather")(tokens, scores, k, largest))


@layouts
def test_topk_gather_in_any_layout(layout, generator):
    tokens = random_tokens(3, 25, 10, BF16, generator=generator, layout=layout)
    scores = torch.randn(3, 50, generator=generator)[:, ::2]
    assert_equal(
        launcher("topk_gather")(tokens, scores, 9), naive("topk_gather")(tokens, scores, 9)
    )


@cases
def test_gather_tokens(shape, dtype, generator):
    tokens = random_tokens(*shape, dtype, generator=generator)
    for k in (0, 1, 11):
        index = torch.randint(0, shape[1], (k, shape[0]), generator=generator).t()
        actual = launcher("gather_tokens")(tokens, index)
        assert_equal([actual], [naive("gather_tokens")(tokens, index)])


def test_gather_tokens_of_no_token_is_nan(generator):
    tokens = random_tokens(1, 4, 5, F16, generator=generator)
    gathered = launcher("gather_tokens")(tokens, torch.tensor([[3, 4, -1, 0]]))
    assert gathered[0].isnan().all(1).tolist() == [False, True, True, False]
    assert torch.equal(gathered[0, 0], tokens[0, 3])


def summands(frames, tokens, channels, dtype, generator, layout="contiguous"):
    """Return tokens whose sums are exact in bfloat16: the interpreter cuts where a GPU rounds."""
    if dtype == BF16:
        return integer_tokens(frames, tokens, channels, dtype, generator=generator)
    return random_tokens(frames, tokens, channels, dtype, generator=generator, layout=layout)


def merge_cases(shape, dtype, generator, layout="contiguous"):
    """Yield arguments of both merging ops, with and without each that may be left out."""
    frames, count, channels = shape
    for k in {0, 1, (count + 2) // 3}:
        updated = random_tokens(frames, k, channels, dtype, generator=generator)
        cached = summands(3, count, channels, dtype, generator, layout)
        residual = summands(frames, count, channels, dtype, generator, layout)
        _, slot = choice(frames, count, k, generator)
        held = held_against(frames, 3, generator)
        yield updated, cached, slot, held, residual
        yield updated, cached[:1], slot, None, None


@cases
def test_merge_tokens(shape, dtype, generator):
    for case in merge_cases(shape, dtype, generator):
        assert_equal([launcher("merge_tokens")(*case)], [naive("merge_tokens")(*case)])


@layouts
def test_merge_tokens_in_any_layout(layout, generator):
    for case in merge_cases((3, 19, 12), F16, generator, layout):
        assert_equal([launcher("merge_tokens")(*case)], [naive("merge_tokens")(*case)])
        norm = (torch.randn(24, generator=generator)[::2], None)
        merged, _ = launcher("merge_tokens_norm")(*case[:3], *norm, *case[3:])
        assert_equal([merged], [naive("merge_tokens")(*case)])


@pytest.mark.parametrize("op", ["merge_tokens", "merge_tokens_norm"])
def test_merge_of_what_is_nowhere_is_nan(op, generator):
    updated, cached = (random_tokens(2, n, 6, generator=generator) for n in (2, 5))
    slot = torch.tensor([[0, -1, 2, 1, -1], [-1, -1, -1, 0, 1]], dtype=torch.int32)
    norm = () if op == "merge_tokens" else (torch.ones(6), None)
    merged = launcher(op)(updated, cached, slot, *norm, torch.tensor([0, 2]))
    lost = merged if op == "merge_tokens" else merged[1]
    assert lost.isnan().any(2).tolist() == [
        [False, False, True, False, False],
        [True] * 3 + [False] * 2,
    ]


@cases
def test_merge_tokens_norm(shape, dtype, generator):
    weight, bias = (torch.randn(shape[2], generator=generator) for _ in range(2))
    for updated, cached, slot, held, residual in merge_cases(shape, dtype, generator):
        norm = (weight, bias) if held is None else (weight.to(dtype), None)
        case = (updated, cached, slot, *norm, held, residual, 1e-5)
        merged, normed = launcher("merge_tokens_norm")(*case)
        expected = naive("merge_tokens_norm")(*case)
        assert_equal([merged], [expected[0]])
        torch.testing.assert_close(normed, expected[1], **one_rounding(dtype))


@cases
def test_layer_norm_gather(shape, dtype, generator):
    frames, count, channels = shape
    tokens = summands(frames, count, channels, dtype, generator)
    weight, bias = (torch.randn(channels, generator=generator) for _ in range(2))
    for k in (0, 1, 5):
        index = torch.randint(0, count, (frames, k), generator=generator)
        added = summands(frames, k, 2 * channels, dtype, generator)[..., ::2]
        for a, b, eps in ((added, bias.to(dtype), 1e-6), (None, None, 0.1)):
            actual = launcher("layer_norm_gather")(tokens, index, weight, b, a, eps)
            expected = naive("layer_norm_gather")(tokens, index, weight, b, a, eps)
            assert_equal([actual[0]], [expected[0]])
            torch.testing.assert_close(actual[1], expected[1], **one_rounding(dtype))


def one_rounding(dtype):
    return {"rtol": 2 * torch.finfo(dtype).eps, "atol": 2e-5 if dtype == F32 else 1e-3}


@cases
def test_quiet_channels(shape, dtype, generator):
    tokens = random_tokens(*shape, dtype, generator=generator)
    tokens = tokens * torch.rand(shape[2], generator=generator).to(dtype) + 100
    if shape[0] and shape[2] > 5:
        tokens[0, 0, 3], tokens[0, -1, 5], tokens[:, :, 4], tokens[:, :, 0] = (
            torch.nan,
            torch.inf,
            7,
            2,
        )
    for keep in {1, (shape[2] + 1) // 2, shape[2]}:
        actual = launcher("quiet_channels")(tokens, keep)
        assert_equal([actual], [naive("quiet_channels")(tokens, keep)])


def test_quiet_channels_over_many_rows_in_any_layout(generator):
    for layout in ("sliced", "transposed", "reversed_frames", "expanded"):
        tokens = random_tokens(9, 70, 33, F32, generator=generator, layout=layout)
        actual = launcher("quiet_channels")(tokens, 20)
        assert_equal([actual], [naive("quiet_channels")(tokens, 20)])


def anchors(frames, channels, dtype, generator):
    yield None
    yield torch.randn(channels, generator=generator)
    yield torch.randn(frames, 2 * channels, generator=generator)[:, ::2].to(dtype)


@strategies
@cases
def test_anchor_scores(shape, strategy, dtype, generator):
    tokens = random_tokens(*shape, dtype, generator=generator)
    for anchor in anchors(shape[0], shape[2], dtype, generator):
        actual = launcher("anchor_scores")(tokens, anchor, strategy, 0.3)
        expected = naive("anchor_scores")(tokens, anchor, strategy, 0.3)
        torch.testing.assert_close(actual, expected, **CLOSE)


@strategies
def test_anchor_scores_on_some_channels(strategy, generator):
    tokens = random_tokens(2, 30, 150, F16, generator=generator, layout="reversed_frames")
    channels = torch.randint(0, 150, (101,), generator=generator)
    for anchor in anchors(2, 101, F32, generator):
        actual = launcher("anchor_scores")(tokens, anchor, strategy, 0.5, channels)
        expected = naive("anchor_scores")(tokens, anchor, strategy, 0.5, channels)
        torch.testing.assert_close(actual, expected, **CLOSE)
    channels[7] = 150
    assert launcher("anchor_scores")(tokens, None, strategy, 0.5, channels).isnan().all()


@strategies
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 3e19])
def test_anchor_scores_of_garbage(bad, strategy, generator):
    tokens = random_tokens(3, 40, 70, generator=generator)
    tokens[0, 3, 5], tokens[0, 39], tokens[2] = bad, bad, bad
    past = torch.randn(3, 70, generator=generator)
    for anchor in (None, past):
        actual = launcher("anchor_scores")(tokens, anchor, strategy)
        expected = naive("anchor_scores")(tokens, anchor, strategy)
        torch.testing.assert_close(actual, expected, equal_nan=True, **CLOSE)
        assert expected[0].isnan().nonzero().squeeze(1).tolist() == [3, 39]
    assert_kept(launcher("prune_tokens")(tokens, 39, past, strategy), tokens, expected, 39, 2e-5)
    past[0, 7], past[1] = bad, bad
    actual = launcher("anchor_scores")(tokens, past, strategy)
    expected = naive("anchor_scores")(tokens, past, strategy)
    torch.testing.assert_close(actual, expected, equal_nan=True, **CLOSE)


@strategies
@pytest.mark.parametrize("channels", [7, 130])
def test_anchor_scores_against_a_past_of_any_size(channels, strategy, generator):
    tokens = random_tokens(5, 20, channels, generator=generator)
    for name, past in extreme_pasts(5, channels, generator):
        actual = launcher("anchor_scores")(tokens, past, strategy)
        expected = naive("anchor_scores")(tokens, past, strategy)
        torch.testing.assert_close(
            actual, expected, equal_nan=True, **CLOSE, msg=lambda m, n=name: f"{n}: {m}"
        )


@strategies
@cases
def test_prune_tokens(shape, strategy, dtype, generator):
    tokens = random_tokens(*shape, dtype, generator=generator)
    for anchor in anchors(shape[0], shape[2], dtype, generator):
        scores = naive("anchor_scores")(tokens, anchor, strategy, 0.3)
        for k in {(shape[1] + 2) // 3, shape[1] if anchor is None else 1}:
            actual = launcher("prune_tokens")(tokens, k, anchor, strategy, 0.3)
            assert_kept(actual, tokens, scores, k, 2e-5)


@strategies
def test_prune_tokens_keeps_the_first_of_equals(strategy, generator):
    few = integer_tokens(2, 4, 9, generator=generator, largest=3)
    which = torch.randint(0, 4, (2, 150), generator=generator)
    tokens = few.gather(1, which.unsqueeze(-1).expand(-1, -1, 9))
    scores = launcher("anchor_scores")(tokens, None, strategy)
    for k in (1, 40, 149):
        actual = launcher("prune_tokens")(tokens, k, None, strategy)
        assert_equal(actual, naive("topk_gather")(tokens, scores, k))
    assert (scores.gather(1, which.argsort(1)).diff(dim=1) == 0).sum() >= 2 * (149 - 4)


@strategies
def test_prune_tokens_in_any_layout(strategy, generator):
    channels = torch.randperm(40, generator=generator)[:23]
    for layout in ("sliced", "transposed", "reversed_frames", "expanded"):
        tokens = random_tokens(3, 25, 40, F16, generator=generator, layout=layout)
        plain = launcher("prune_tokens")(tokens.contiguous(), 9, None, strategy, 0.5, channels)
        assert_equal(launcher("prune_tokens")(tokens, 9, None, strategy, 0.5, channels), plain)


@pytest.mark.parametrize("bad", [0.0, torch.nan])
def test_on_amd_a_launch_of_its_own_finishes_frames(bad, generator, monkeypatch):
    launched = []
    monkeypatch.setattr(_launching, "nvidia", False)
    for name in ("select_dynamic", "quiet_channels", "anchor_scores"):
        monkeypatch.setattr(
            import_module(f"stc_kernels.ops.{name}.launch"),
            "launch",
            lambda kernel, *args, **meta: (
                launched.append(kernel.fn.__name__),
                _launching.launch(kernel, *args, **meta),
            ),
        )
    a, b = (integer_tokens(2, 63, 12, BF16, generator=generator) for _ in range(2))
    past = torch.randn(12, generator=generator)
    a[1, 5, 3] = bad
    actual = launcher("select_dynamic")(a, b, 9)
    assert_equal(actual, naive("select_dynamic")(a, b, 9))
    assert launched == ["choose_tokens_kernel"]
    actual = launcher("quiet_channels")(a, 5)
    assert_equal([actual], [naive("quiet_channels")(a, 5)])
    assert launched[1:] == ["channel_sums_kernel", "add_chunks_kernel", "rank_channels_kernel"]
    for strategy in ("dual_anchor", "gaussian"):
        launched.clear()
        scores = launcher("anchor_scores")(a, past, strategy)
        expected = naive("anchor_scores")(a, past, strategy)
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
        assert launched[-2:] == ["column_blocks_kernel", "finish_frames_kernel"]
        kept = launcher("prune_tokens")(a, 7, past, strategy)
        assert_kept(kept, a, expected, 7, 1e-4)
