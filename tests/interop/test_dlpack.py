"""`stc_kernels.interop.dlpack` on NumPy, JAX and CuPy arrays against the torch ops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ops.test_registration import OPS, arguments

import stc_kernels
from stc_kernels.interop import dlpack


def results(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("op", OPS)
def test_numpy_arrays_in_numpy_arrays_out(op, seed):
    torch.manual_seed(seed)
    args = arguments(op, 3)
    arrays = [a.numpy() if isinstance(a, torch.Tensor) else a for a in args]
    found = results(getattr(dlpack, op)(*arrays))
    expected = results(getattr(stc_kernels, op)(*args))
    assert len(found) == len(expected)
    for array, tensor in zip(found, expected, strict=True):
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, tensor.numpy(), strict=True)


@pytest.mark.parametrize("op", OPS)
def test_jax_arrays_in_jax_arrays_out(op, seed):
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    torch.manual_seed(seed)
    args = arguments(op, 2)
    with jax.enable_x64(True):
        # JAX takes no array with gaps.
        arrays = [
            jax.dlpack.from_dlpack(a.contiguous()) if isinstance(a, torch.Tensor) else a
            for a in args
        ]
        found = results(getattr(dlpack, op)(*arrays))
        for array, tensor in zip(found, results(getattr(stc_kernels, op)(*args)), strict=True):
            assert isinstance(array, jax.Array)
            np.testing.assert_array_equal(np.asarray(array), tensor.numpy(), strict=True)


def test_any_memory_that_dlpack_describes(seed):
    tokens = np.random.default_rng(seed).standard_normal((3, 20, 8), dtype=np.float32)
    expected = dlpack.prune_tokens(tokens, 5)
    locked = tokens.copy()
    locked.flags.writeable = False
    window = np.zeros((4, 24, 11), np.float32)[1:, 2:-2, 3:]
    window[...] = tokens
    for array in (locked, window, np.asfortranarray(tokens)):
        for found, right in zip(dlpack.prune_tokens(array, 5), expected, strict=True):
            np.testing.assert_array_equal(found, right)
    again = dlpack.prune_tokens(np.broadcast_to(tokens[0], (7, 20, 8)), 5)[1]
    np.testing.assert_array_equal(again, expected[1][:1].repeat(7, 0))


def test_negative_strides_are_refused():
    tokens = np.zeros((3, 20, 8), np.float32)
    for array in (tokens[::-1], tokens[:, ::-1], tokens[..., ::-2]):
        strides = list(array.strides)
        with pytest.raises(ValueError) as raised:  # noqa: PT011 (the whole text is compared)
            dlpack.patch_similarity(tokens, array)
        must = "must have no negative strides (a copy has none)"
        text = f"stc_kernels.patch_similarity: reference {must}, but has strides {strides}"
        assert str(raised.value) == text


def test_results_outlive_what_they_came_from():
    kept, index = dlpack.prune_tokens(np.ones((64, 196, 64), np.float32), 8)
    # What would be found in freed memory: another value.
    others = [np.full((64, 8, 64), 7, np.float32) for _ in range(8)]
    assert (kept == 1).all() and (index == np.arange(8)).all() and others
    kept[:] = 2
    assert (kept == 2).all()


@pytest.mark.gpu
@pytest.mark.parametrize("op", OPS)
def test_cupy_arrays_in_cupy_arrays_out(op, seed):
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    torch.manual_seed(seed)
    args = [a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments(op, 3)]
    arrays = [cupy.from_dlpack(a) if isinstance(a, torch.Tensor) else a for a in args]
    found = results(getattr(dlpack, op)(*arrays))
    for array, tensor in zip(found, results(getattr(stc_kernels, op)(*args)), strict=True):
        assert isinstance(array, cupy.ndarray)
        np.testing.assert_array_equal(cupy.asnumpy(array), tensor.cpu().numpy(), strict=True)


def test_nothing_is_copied(monkeypatch):
    monkeypatch.setattr(stc_kernels, "topk_gather", lambda tokens, scores, *rest: (tokens, scores))
    tokens, scores = np.ones((2, 3, 4), np.float32), np.ones((2, 3), np.float32)
    same_tokens, same_scores = dlpack.topk_gather(tokens, scores, 1)
    assert np.shares_memory(tokens, same_tokens) and np.shares_memory(scores, same_scores)


def test_strided_arrays(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.standard_normal((8, 5, 6), dtype=np.float32).transpose(1, 2, 0)[::2]
    index = np.array([[1, 3], [0, 5], [2, 4]])
    np.testing.assert_array_equal(
        dlpack.gather_tokens(tokens, index), np.take_along_axis(tokens, index[:, :, None], axis=1)
    )


def test_errors_are_those_of_the_ops():
    tokens, scores = np.ones((2, 3, 4), np.float32), np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"topk_gather: k must be in 1\.\.3, but is 4"):
        dlpack.topk_gather(tokens, scores, 4)
    with pytest.raises(TypeError, match="topk_gather: scores must have dtype"):
        dlpack.topk_gather(tokens, scores.astype(np.float64), 1)
    with pytest.raises(TypeError, match="topk_gather"):
        dlpack.topk_gather(tokens.tolist(), scores, 1)
