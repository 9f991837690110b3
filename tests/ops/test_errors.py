"""Bad arguments: one text, from the compiled op, the checks in Python and the function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad

import stc_kernels
from stc_kernels import _checks

X = torch.ones(2, 6, 4)
INDEX = torch.zeros(2, 3, dtype=torch.int64)
SLOT = torch.full((2, 6), -1, dtype=torch.int32)
SCORES = torch.zeros(2, 6)
HELD = torch.zeros(2, dtype=torch.int64)


def grad() -> torch.Tensor:
    return X.clone().requires_grad_()


# op, arguments, the exception of the public function, what it says after the op's name
CASES: list[tuple[str, tuple[Any, ...], type[Exception], str]] = []


def bad(op: str, args: tuple[Any, ...], error: type[Exception], text: str) -> None:
    CASES.append((op, args, error, text))


def bad_tokens(op: str, argument: str, build: Any) -> None:
    """What every op says of tokens that are none; `build` puts a tensor in the argument's place."""
    # An optional tensor may be None, and with no tensor at all it is torch that complains.
    if argument != "residual" and op not in ("quiet_channels", "anchor_scores", "prune_tokens"):
        bad(op, build(None), TypeError, f"{argument} must be a tensor, but is None")
    bad(
        op,
        build(X[0]),
        ValueError,
        f"{argument} must have shape [frames, tokens, channels], but has shape [6, 4]",
    )
    bad(
        op,
        build(X.double()),
        TypeError,
        f"{argument} must have dtype float32, float16 or bfloat16, but has dtype float64",
    )
    bad(
        op,
        build(torch.ones(2, 6, 0)),
        ValueError,
        f"{argument} must have at least one token and one channel, but has shape [2, 6, 0]",
    )
    bad(
        op,
        build(grad()),
        ValueError,
        f"{argument} must not require grad in grad mode (the op has no gradient), but does",
    )


for name, extra in (("patch_similarity", ()), ("select_dynamic", (2,))):
    bad_tokens(name, "current", lambda x, extra=extra: (x, X, *extra))
    bad_tokens(name, "reference", lambda x, extra=extra: (X, x, *extra))
    bad(
        name,
        (X, X.half(), *extra),
        TypeError,
        "reference must have dtype float32 like current, but has dtype float16",
    )
    bad(
        name,
        (X, torch.ones(2, 6, 5), *extra),
        ValueError,
        "reference must have shape [references, 6, 4] like current, but has shape [2, 6, 5]",
    )
    bad(
        name,
        (X, torch.ones(3, 6, 4), *extra),
        ValueError,
        "reference must hold 1 or 2 references when reference_index is not given, but holds 3",
    )
    bad(
        name,
        (X, X, *extra, None, "cos"),
        ValueError,
        "metric must be cosine, dot, l1 or l2, but is 'cos'",
    )
    bad(
        name,
        (X, X, *extra, HELD.int()),
        TypeError,
        "reference_index must have dtype int64, but has dtype int32",
    )
    bad(
        name,
        (X, X, *extra, HELD[:1]),
        ValueError,
        "reference_index must have shape [2], but has shape [1]",
    )
    bad(
        name,
        (X, X, *extra, HELD + 2),
        ValueError,
        "reference_index must hold values in 0..1, but holds 2",
    )
    bad(
        name,
        (X, X, *extra, HELD - 1),
        ValueError,
        "reference_index must hold values in 0..1, but holds -1",
    )
for k in (0, 7, -3):
    bad("select_dynamic", (X, X, k), ValueError, f"k must be in 1..6, but is {k}")
    bad("topk_gather", (X, SCORES, k), ValueError, f"k must be in 1..6, but is {k}")
    bad("prune_tokens", (X, k), ValueError, f"k must be in 1..6, but is {k}")

bad_tokens("gather_tokens", "tokens", lambda x: (x, INDEX))
bad(
    "gather_tokens",
    (X, INDEX.int()),
    TypeError,
    "index must have dtype int64, but has dtype int32",
)
bad("gather_tokens", (X, INDEX[0]), ValueError, "index must have shape [2, k], but has shape [3]")
bad(
    "gather_tokens",
    (X, INDEX[:1]),
    ValueError,
    "index must have shape [2, k], but has shape [1, 3]",
)
bad("gather_tokens", (X, INDEX + 6), ValueError, "index must hold values in 0..5, but holds 6")
bad("gather_tokens", (X, INDEX - 1), ValueError, "index must hold values in 0..5, but holds -1")

bad_tokens("merge_tokens", "cached", lambda x: (X, x, SLOT))
bad_tokens("merge_tokens", "updated", lambda x: (x, X, SLOT))
bad_tokens("merge_tokens", "residual", lambda x: (X, X, SLOT, None, x))
bad(
    "merge_tokens",
    (X.half(), X, SLOT),
    TypeError,
    "updated must have dtype float32 like cached, but has dtype float16",
)
bad(
    "merge_tokens",
    (X[:, :, :3], X, SLOT),
    ValueError,
    "updated must have 4 channels like cached, but has shape [2, 6, 3]",
)
bad(
    "merge_tokens",
    (X, X, SLOT.long()),
    TypeError,
    "slot must have dtype int32, but has dtype int64",
)
bad(
    "merge_tokens",
    (X, X, SLOT[:, 1:]),
    ValueError,
    "slot must have shape [2, 6], but has shape [2, 5]",
)
bad("merge_tokens", (X, X, SLOT - 1), ValueError, "slot must hold values in -1..5, but holds -2")
bad("merge_tokens", (X, X, SLOT + 7), ValueError, "slot must hold values in -1..5, but holds 6")
bad(
    "merge_tokens",
    (X, torch.ones(3, 6, 4), SLOT),
    ValueError,
    "cached must hold 1 or 2 references when reference_index is not given, but holds 3",
)
bad(
    "merge_tokens",
    (X, X, SLOT, HELD + 2),
    ValueError,
    "reference_index must hold values in 0..1, but holds 2",
)
bad(
    "merge_tokens",
    (X, X, SLOT, None, X[:1]),
    ValueError,
    "residual must have shape [2, 6, 4], but has shape [1, 6, 4]",
)
bad(
    "merge_tokens",
    (X, X, SLOT, None, X.bfloat16()),
    TypeError,
    "residual must have dtype float32 like cached, but has dtype bfloat16",
)

bad_tokens("quiet_channels", "tokens", lambda x: (x, 2))
for keep in (0, 5):
    bad("quiet_channels", (X, keep), ValueError, f"keep must be in 1..4, but is {keep}")

bad_tokens("topk_gather", "tokens", lambda x: (x, SCORES, 2))
bad(
    "topk_gather",
    (X, SCORES.half(), 2),
    TypeError,
    "scores must have dtype float32, but has dtype float16",
)
bad(
    "topk_gather",
    (X, SCORES[:1], 2),
    ValueError,
    "scores must have shape [2, 6], but has shape [1, 6]",
)
bad(
    "topk_gather",
    (X, SCORES.clone().requires_grad_(), 2),
    ValueError,
    "scores must not require grad in grad mode (the op has no gradient), but does",
)

for name, extra in (("anchor_scores", ()), ("prune_tokens", (2,))):
    bad_tokens(name, "tokens", lambda x, extra=extra: (x, *extra))
    bad(
        name,
        (X, *extra, None, "paper"),
        ValueError,
        "strategy must be dual_anchor or gaussian, but is 'paper'",
    )
    for alpha, text in ((1.5, "1.5"), (-0.25, "-0.25"), (float("nan"), "nan")):
        bad(
            name,
            (X, *extra, None, "dual_anchor", alpha),
            ValueError,
            f"alpha must be in 0..1, but is {text}",
        )
    bad(
        name,
        (X, *extra, torch.ones(3)),
        ValueError,
        "temporal_anchor must have shape [4] or [2, 4], but has shape [3]",
    )
    bad(
        name,
        (X, *extra, torch.ones(1, 4)),
        ValueError,
        "temporal_anchor must have shape [4] or [2, 4], but has shape [1, 4]",
    )
    bad(
        name,
        (X, *extra, torch.ones(4).half()),
        TypeError,
        "temporal_anchor must have dtype float32 or that of tokens, but has dtype float16",
    )
    bad(
        name,
        (X, *extra, torch.ones(4, requires_grad=True)),
        ValueError,
        "temporal_anchor must not require grad in grad mode (the op has no gradient), but does",
    )
    bad(
        name,
        (X, *extra, None, "gaussian", 0.5, torch.tensor([0, 4])),
        ValueError,
        "channels must hold values in 0..3, but holds 4",
    )
    bad(
        name,
        (X, *extra, None, "gaussian", 0.5, torch.tensor([], dtype=torch.int64)),
        ValueError,
        "channels must have shape [c], c at least 1, but has shape [0]",
    )
    bad(
        name,
        (X, *extra, None, "gaussian", 0.5, torch.tensor([0], dtype=torch.int32)),
        TypeError,
        "channels must have dtype int64, but has dtype int32",
    )
    bad(
        name,
        (X, *extra, torch.ones(4), "gaussian", 0.5, torch.tensor([0, 1])),
        ValueError,
        "temporal_anchor must have shape [2] or [2, 2], but has shape [4]",
    )


bad("gather_tokens", (X, None), TypeError, "index must be a tensor, but is None")
bad("merge_tokens", (X, X, None), TypeError, "slot must be a tensor, but is None")
bad("topk_gather", (X, None, 2), TypeError, "scores must be a tensor, but is None")

# The two ops that end in a layer norm say the same of the arguments before it.
W = torch.ones(4)
for op, args, error, text in tuple(CASES):
    if op == "gather_tokens":
        bad("layer_norm_gather", (*args, W), error, text)
    if op == "merge_tokens":
        bad("merge_tokens_norm", (*args[:3], W, None, *args[3:]), error, text)
for name, before in (("layer_norm_gather", (X, INDEX)), ("merge_tokens_norm", (X, X, SLOT))):
    bad(name, (*before, None), TypeError, "weight must be a tensor, but is None")
    bad(name, (*before, W[:3]), ValueError, "weight must have shape [4], but has shape [3]")
    bad(name, (*before, W, X[0]), ValueError, "bias must have shape [4], but has shape [6, 4]")
    bad(
        name,
        (*before, W.double()),
        TypeError,
        "weight must have dtype float32 or that of the tokens, but has dtype float64",
    )
    bad(
        name,
        (*before, torch.nn.Parameter(W)),
        ValueError,
        "weight must not require grad in grad mode (the op has no gradient), but does",
    )
bad(
    "layer_norm_gather",
    (X, INDEX, W, W, None, -1.0),
    ValueError,
    "eps must be 0 or more, but is -1",
)
bad(
    "layer_norm_gather",
    (X, INDEX, W, W, X),
    ValueError,
    "added must have shape [2, 3, 4], but has shape [2, 6, 4]",
)
bad(
    "merge_tokens_norm",
    (X, X, SLOT, W, W, None, None, float("nan")),
    ValueError,
    "eps must be 0 or more, but is nan",
)


@pytest.mark.parametrize(("op", "args", "error", "text"), CASES)
def test_one_text_everywhere(op, args, error, text):
    text = f"stc_kernels.{op}: {text}"
    with pytest.raises(error) as raised:
        getattr(stc_kernels, op)(*args)
    assert str(raised.value) == text
    with pytest.raises(RuntimeError) as raised:
        getattr(torch.ops.stc_kernels, op)(*args)
    assert str(raised.value) == text
    with pytest.raises(RuntimeError) as raised:
        getattr(_checks, op)(*args)
    assert str(raised.value) == text


SUPPORTED = (torch.float32, torch.float16, torch.bfloat16)
OTHERS = {
    value
    for value in vars(torch).values()
    # A quantized tensor is no CPU tensor to the dispatcher: see below.
    if isinstance(value, torch.dtype) and value not in SUPPORTED and "q" not in str(value)
}


@pytest.mark.parametrize("dtype", sorted(OTHERS, key=str), ids=lambda d: str(d)[6:])
def test_every_other_dtype_is_named(dtype):
    other = torch.empty(2, 6, 4, dtype=dtype)
    text = f"must have dtype float32, float16 or bfloat16, but has dtype {str(dtype)[6:]}"
    for op in (stc_kernels.quiet_channels, _checks.quiet_channels):
        with pytest.raises((TypeError, RuntimeError)) as raised:
            op(other, 2)
        assert str(raised.value) == f"stc_kernels.quiet_channels: tokens {text}"


def test_nothing_that_the_kernels_run_on():
    with pytest.raises(TypeError, match=r"^There were no tensor[^\n]*::quiet_channels$"):
        stc_kernels.quiet_channels(None, 1)
    with pytest.raises(TypeError, match=r"^Could not run[^\n]*backend$"):
        stc_kernels.gather_tokens(X.to_sparse(), INDEX)


@pytest.mark.parametrize("op", ["patch_similarity", "gather_tokens", "prune_tokens"])
def test_not_a_tensor(op):
    arguments = {"patch_similarity": ([1], X), "gather_tokens": (X, [0]), "prune_tokens": (X, "a")}
    with pytest.raises(TypeError, match=op):
        getattr(stc_kernels, op)(*arguments[op])


def test_no_grad_makes_it_right():
    with torch.no_grad():
        assert stc_kernels.patch_similarity(grad(), X).shape == (2, 6)
    # Neither a leaf, nor made under grad: what a model's activation is.
    with pytest.raises(ValueError, match="not require grad"):
        stc_kernels.patch_similarity(grad() * 2, X)


def derivatives(function):
    """Yield calls that differentiate a function of a tensor, each by another transform."""
    ones = torch.ones_like(X)
    yield lambda: torch.func.grad(lambda x: function(x).sum())(X)
    yield lambda: torch.func.vjp(function, X)
    yield lambda: torch.func.jvp(function, (X,), (ones,))
    yield lambda: torch.func.jacfwd(function)(X)
    yield lambda: torch.vmap(torch.func.grad(lambda x: function(x[None]).sum()))(X)
    yield lambda: torch.func.grad(lambda x: torch.vmap(lambda y: function(y[None]))(x).sum())(X)
    with forward_ad.dual_level():
        yield lambda: function(forward_ad.make_dual(X, ones))


@pytest.mark.parametrize(
    ("op", "name", "function"),
    [
        ("patch_similarity", "current", lambda x: stc_kernels.patch_similarity(x, X[:1])),
        ("patch_similarity", "reference", lambda x: stc_kernels.patch_similarity(X[:1], x[:1])),
        (
            "merge_tokens",
            "residual",
            lambda x: stc_kernels.merge_tokens(X[:, :0][: len(x)], X[:1], SLOT[: len(x)], None, x),
        ),
        (
            "prune_tokens",
            "temporal_anchor",
            lambda x: stc_kernels.prune_tokens(X[:1], 2, x[0, 0])[0],
        ),
    ],
)
def test_no_transform_takes_a_derivative_for_zero(op, name, function):
    must = "not require grad in grad mode (the op has no gradient)"
    for differentiate in derivatives(function):
        with pytest.raises(ValueError) as raised:  # noqa: PT011 (the whole text is compared)
            differentiate()
        assert str(raised.value) == f"stc_kernels.{op}: {name} must {must}, but does"


def test_transforms_of_something_else():
    scores = stc_kernels.patch_similarity(X, X + 1)
    weighed = torch.func.grad(lambda w: (w * stc_kernels.patch_similarity(X, X + 1)).sum())
    torch.testing.assert_close(weighed(torch.ones(2, 6)), scores)

    def detached(x):
        return (x.sum(2) * stc_kernels.patch_similarity(x.detach(), X + 1)).sum()

    torch.testing.assert_close(torch.func.grad(detached)(X), scores[..., None].expand(X.shape))
    many = torch.vmap(lambda x: stc_kernels.patch_similarity(x, X + 1))(torch.stack([X, X + 1]))
    torch.testing.assert_close(many, torch.stack([scores, torch.ones(2, 6)]))


def test_a_right_call_after_a_wrong_one(generator):
    with pytest.raises(ValueError, match="k must be in"):
        stc_kernels.select_dynamic(X, X, 7)
    assert stc_kernels.select_dynamic(X, X, 6)[0].tolist() == [list(range(6))] * 2
