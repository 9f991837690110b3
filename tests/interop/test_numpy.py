"""`stc_kernels.interop.numpy` against the torch ops, and without torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import stc_kernels

sn = pytest.importorskip("stc_kernels.interop.numpy", exc_type=ImportError)


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def test_imports_no_torch():
    code = "import sys, stc_kernels.interop.numpy; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("metric", ["cosine", "dot", "l1", "l2"])
@pytest.mark.parametrize("frames", [0, 1, 5])
def test_similarity_and_selection(metric, frames, rng):
    current, reference = normal(rng, frames, 30, 20), normal(rng, 3, 30, 20)
    held = rng.integers(0, 3, frames)
    args = (torch.from_numpy(current), torch.from_numpy(reference))
    similarity = sn.patch_similarity(current, reference, held, metric)
    expected = stc_kernels.patch_similarity(*args, torch.from_numpy(held), metric)
    assert similarity.dtype == np.float32
    np.testing.assert_array_equal(similarity, expected.numpy())
    index, slot = sn.select_dynamic(current, reference, 7, held, metric)
    expected_index, expected_slot = stc_kernels.select_dynamic(
        *args, 7, torch.from_numpy(held), metric
    )
    assert (index.dtype, slot.dtype) == (np.int64, np.int32)
    np.testing.assert_array_equal(index, expected_index.numpy())
    np.testing.assert_array_equal(slot, expected_slot.numpy())


@pytest.mark.parametrize("largest", [True, False])
def test_topk_gather(largest, rng):
    tokens = normal(rng, 4, 25, 6)
    scores = rng.integers(-3, 4, (4, 25)).astype(np.float32)
    scores[1, 3], scores[2, 5] = np.nan, np.inf
    kept, index = sn.topk_gather(tokens, scores, 9, largest)
    expected = stc_kernels.topk_gather(
        torch.from_numpy(tokens), torch.from_numpy(scores), 9, largest
    )
    np.testing.assert_array_equal(kept, expected[0].numpy())
    np.testing.assert_array_equal(index, expected[1].numpy())


def test_any_memory_layout(rng):
    current, reference = normal(rng, 20, 4, 9).transpose(1, 2, 0), normal(rng, 9, 20)
    plain = sn.select_dynamic(current.copy(), reference[None].transpose(0, 1, 2).copy(), 4)
    strange = np.asfortranarray(reference[None])
    for a, b in zip(sn.select_dynamic(current, strange, 4), plain, strict=True):
        np.testing.assert_array_equal(a, b)
    unaligned = np.frombuffer(b"x" + current.tobytes(), np.uint8)[1:].view(np.float32)
    assert not unaligned.flags.aligned
    moved = sn.patch_similarity(unaligned.reshape(current.shape), strange)
    np.testing.assert_array_equal(moved, sn.patch_similarity(current, strange))


@pytest.mark.parametrize(
    ("height", "width", "patch"), [(28, 42, 14), (30, 45, 14), (7, 5, 16), (9, 9, 1), (1, 1, 1)]
)
def test_frame_difference(height, width, patch, rng):
    current, reference = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    actual = sn.frame_difference(current, reference, patch)
    rows, columns = -(-height // patch), -(-width // patch)
    assert actual.shape == (rows, columns) and actual.dtype == np.float32
    change = np.abs(current.astype(int) - reference) / 255
    for i in range(rows):
        for j in range(columns):
            block = change[i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            np.testing.assert_allclose(actual[i, j], block.mean(), rtol=1e-6)


def test_frame_difference_ends():
    black, white = np.zeros((6, 6, 3), np.uint8), np.full((6, 6, 3), 255, np.uint8)
    assert (sn.frame_difference(black, white, 3) == 1).all()
    assert (sn.frame_difference(white, black, 3) == 1).all()
    assert (sn.frame_difference(white, white, 3) == 0).all()
    # A window of a larger frame, and a patch larger than both.
    assert sn.frame_difference(black[1:5, ::2], white[1:5, ::2], 99).tolist() == [[1.0]]


X = np.zeros((2, 6, 4), np.float32)
FRAME = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("op", "args", "error", "text"),
    [
        (
            "patch_similarity",
            (X[0], X),
            ValueError,
            "current must have shape [frames, tokens, channels], but has shape [6, 4]",
        ),
        (
            "patch_similarity",
            (X, X.astype(np.float64)),
            TypeError,
            "reference must have dtype float32, but has dtype float64",
        ),
        (
            "patch_similarity",
            (X.tolist(), X),
            TypeError,
            "current must be a numpy.ndarray, but is a list",
        ),
        (
            "patch_similarity",
            (X, X, None, "cos"),
            ValueError,
            "metric must be cosine, dot, l1 or l2, but is 'cos'",
        ),
        (
            "patch_similarity",
            (X, X, np.array([0, 2])),
            ValueError,
            "reference_index must hold values in 0..1, but holds 2",
        ),
        (
            "patch_similarity",
            (X, X[:, :5]),
            ValueError,
            "reference must have shape [references, 6, 4] like current, but has shape [2, 5, 4]",
        ),
        ("select_dynamic", (X, X, 7), ValueError, "k must be in 1..6, but is 7"),
        ("select_dynamic", (X, X, 1.5), TypeError, "k must be an int, but is a float"),
        (
            "topk_gather",
            (X, X[:, :, 0].T, 1),
            ValueError,
            "scores must have shape [2, 6], but has shape [6, 2]",
        ),
        ("topk_gather", (X, X[:, :, 0], 0), ValueError, "k must be in 1..6, but is 0"),
        (
            "frame_difference",
            (FRAME[:, :, :2], FRAME, 2),
            ValueError,
            "current must have shape [height, width, 3], but has shape [4, 4, 2]",
        ),
        (
            "frame_difference",
            (FRAME, FRAME[:3], 2),
            ValueError,
            "reference must have shape [4, 4, 3] like current, but has shape [3, 4, 3]",
        ),
        (
            "frame_difference",
            (FRAME.astype(np.float32), FRAME, 2),
            TypeError,
            "current must have dtype uint8, but has dtype float32",
        ),
        ("frame_difference", (FRAME, FRAME, 0), ValueError, "patch must be 1 or more, but is 0"),
    ],
)
def test_errors(op, args, error, text):
    with pytest.raises(error) as raised:
        getattr(sn, op)(*args)
    assert str(raised.value) == f"stc_kernels.{op}: {text}"
