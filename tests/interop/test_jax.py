"""`stc_kernels.interop.jax` against the torch ops: on arrays, under jit and under vmap."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from ops.test_registration import OPS, arguments

import stc_kernels
from stc_kernels.testing import random_tokens

jax = pytest.importorskip("jax", reason="JAX is not installed")
jnp = jax.numpy
sj = pytest.importorskip("stc_kernels.interop.jax")


def to_jax(value):
    """The same numbers as a JAX array, which has no gaps; int64 becomes JAX's default integer."""
    return jnp.from_dlpack(value.contiguous()) if isinstance(value, torch.Tensor) else value


def assert_equal(found, expected):
    found = found if isinstance(found, tuple) else (found,)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for array, tensor in zip(found, expected, strict=True):
        assert isinstance(array, jax.Array)
        if tensor.dtype == torch.int64:
            assert array.dtype == jnp.asarray(1).dtype
            assert array.tolist() == tensor.tolist()
        else:
            assert str(array.dtype) == str(tensor.dtype)[6:]
            # torch reads it back, NaN and all.
            assert torch.equal(torch.from_dlpack(array), tensor)


@pytest.fixture(params=[False, True], ids=["int32", "int64"])
def _integers(request):
    with jax.enable_x64(request.param):
        yield


@pytest.mark.usefixtures("_integers")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_ops_on_arrays(op, dtype, seed):
    torch.manual_seed(seed)
    args = arguments(op, 3, dtype)
    found = getattr(sj, op)(*map(to_jax, args))
    assert_equal(found, getattr(stc_kernels, op)(*args))


@pytest.mark.usefixtures("_integers")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_ops_under_jit(op, dtype, seed):
    torch.manual_seed(seed)
    args = arguments(op, 3, dtype)
    static = tuple(i for i, value in enumerate(args) if not isinstance(value, torch.Tensor))
    found = jax.jit(getattr(sj, op), static_argnums=static)(*map(to_jax, args))
    assert_equal(found, getattr(stc_kernels, op)(*args))


def test_jit_fuses_with_what_is_around_it(seed):
    torch.manual_seed(seed)
    tokens = random_tokens(4, 20, 8)

    @jax.jit
    def most_novel(tokens):
        kept, index = sj.prune_tokens(tokens * 2, k=5)
        return kept / 2, index + 1

    kept, index = stc_kernels.prune_tokens(tokens * 2, 5)
    assert_equal(most_novel(to_jax(tokens)), (kept / 2, index + 1))


def test_vmap_calls_an_op_once_a_row(seed):
    torch.manual_seed(seed)
    tokens, scores = random_tokens(6, 9, 4), torch.randn(6, 9)
    batched = (to_jax(tokens.view(3, 2, 9, 4)), to_jax(scores.view(3, 2, 9)))
    kept, index = jax.vmap(partial(sj.topk_gather, k=4))(*batched)
    expected, places = stc_kernels.topk_gather(tokens, scores, 4)
    assert_equal((kept.reshape(6, 4, 4), index.reshape(6, 4)), (expected, places))


def test_no_frames():
    tokens = jnp.zeros((0, 5, 3))
    for kept, index in (sj.prune_tokens(tokens, 2), jax.jit(partial(sj.prune_tokens, k=2))(tokens)):
        assert kept.shape == (0, 2, 3) and index.shape == (0, 2)


def test_nothing_is_copied(monkeypatch):
    monkeypatch.setattr(stc_kernels, "quiet_channels", lambda tokens, keep: tokens)
    tokens = jnp.ones((2, 3, 4))
    same = sj.quiet_channels(tokens, 1)
    assert same.unsafe_buffer_pointer() == tokens.unsafe_buffer_pointer()


def test_errors_are_those_of_the_ops():
    tokens, scores = jnp.ones((2, 3, 4)), jnp.ones((2, 3))
    wrong_k = pytest.raises(ValueError, match=r"topk_gather: k must be in 1\.\.3, but is 4")
    with wrong_k:
        sj.topk_gather(tokens, scores, 4)
    wrong_type = pytest.raises(TypeError, match="topk_gather: scores must have dtype float32")
    with wrong_type:
        sj.topk_gather(tokens, scores.astype(jnp.int32), 1)
    with pytest.raises(ValueError, match="gather_tokens: index must hold values in"):
        sj.gather_tokens(tokens, jnp.full((2, 1), 3))


def test_a_numpy_array_with_negative_strides_is_refused():
    tokens = random_tokens(2, 6, 4).numpy()[:, ::-1]
    with pytest.raises(ValueError, match=r"tokens must have no negative strides .* \[96, -16, 4\]"):
        sj.prune_tokens(tokens, 2)
    assert jax.jit(lambda x: sj.prune_tokens(x, 2)[1])(tokens).shape == (2, 2)


def test_what_shapes_show_is_found_while_tracing():
    tokens, scores = jnp.ones((2, 3, 4)), jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"topk_gather: k must be in 1\.\.3, but is 4"):
        jax.jit(partial(sj.topk_gather, k=4))(tokens, scores)
    with pytest.raises(TypeError, match="topk_gather: scores must have dtype float32"):
        jax.jit(partial(sj.topk_gather, k=1))(tokens, scores.astype(jnp.float16))


def test_what_values_show_is_found_while_running():
    gather = jax.jit(sj.gather_tokens)
    with pytest.raises(jax.errors.JaxRuntimeError, match="index must hold values in"):
        jax.block_until_ready(gather(jnp.ones((2, 3, 4)), jnp.full((2, 1), 3)))


def test_a_traced_number_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"prune_tokens: k must be known .* static_argnames='k'"):
        jax.jit(sj.prune_tokens)(jnp.ones((2, 3, 4)), 2)


def test_gradients_are_refused():
    with pytest.raises(ValueError, match="do not support JVP"):
        jax.grad(lambda tokens: sj.prune_tokens(tokens, 1)[0].sum())(jnp.ones((2, 3, 4)))
