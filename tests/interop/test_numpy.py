"""`stc_numpy` against the torch ops, and without torch."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import textwrap

import numpy as np
import pytest
import torch
from ops.test_errors import CASES

import stc_kernels

sn = pytest.importorskip("stc_numpy", exc_type=ImportError)


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


GATE = """
import numpy as np
from stc_numpy import frame_difference
black, white = np.array([0, 255], np.uint8).repeat(72).reshape(2, 4, 6, 3)
assert (frame_difference(black, white, 4) == 1).all()
"""
BESIDE = {
    "nothing": "import sys\n{}\nassert 'torch' not in sys.modules",
    "torch forbidden": "import sys; sys.modules['torch'] = None\n{}",
    "torch mocked": "import sys, unittest.mock as m; sys.modules['torch'] = m.MagicMock()\n{}",
    "torch an empty module": "import sys; sys.modules['torch'] = type(sys)('torch')\n{}",
    "torch that fails": """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise OSError("libtorch.so: cannot open shared object file")
sys.meta_path.insert(0, Broken())
{}""",
}


@pytest.mark.parametrize("code", BESIDE.values(), ids=BESIDE)
def test_needs_no_torch(code):
    subprocess.run([sys.executable, "-c", code.format(GATE)], check=True)


def test_the_former_name_is_an_alias_that_says_so():
    sys.modules.pop("stc_kernels.interop.numpy", None)
    with pytest.warns(DeprecationWarning, match="is now stc_numpy") as warned:
        import stc_kernels.interop.numpy as former
    assert warned[0].filename == __file__
    assert former.__all__ == sn.__all__
    assert all(getattr(former, name) is getattr(sn, name) for name in sn.__all__)


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


def test_frame_difference_of_more_rows_than_32_bits_can_add_up():
    # A column whose differences add up past 2³², in one patch and with another beside it.
    rows = 2**32 // 255 + 1000
    black, other = np.zeros((rows, 2, 3), np.uint8), np.full((rows, 2, 3), 255, np.uint8)
    other[:, 1] = 51
    assert sn.frame_difference(black[:, :1], other[:, :1], rows).tolist() == [[1.0]]
    np.testing.assert_allclose(sn.frame_difference(black, other, rows), [[0.6]], rtol=1e-6)
    lower = sn.frame_difference(black, other, rows - 7)[1]
    np.testing.assert_allclose(lower, [0.6], rtol=1e-6)


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="not a free-threaded Python"
)
def test_leaves_the_global_interpreter_lock_off():
    code = f"import sys, {sn._kernels.__name__}; assert not sys._is_gil_enabled()"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


SHARED = [case for case in CASES if case[0] in sn.__all__ and "require grad" not in case[3]]


def without_torch(text: str) -> str:
    """Return what is said of arrays where `text` is said of tensors: there is but one dtype."""
    return (
        text.replace("be a tensor", "be a numpy.ndarray")
        .replace("float32, float16 or bfloat16", "float32")
        .replace("float32 like current", "float32")
    )


@pytest.mark.parametrize(("op", "args", "error", "text"), SHARED)
def test_the_text_is_that_of_the_torch_ops(op, args, error, text):
    arrays = [a.numpy() if isinstance(a, torch.Tensor) else a for a in args]
    with pytest.raises(error) as raised:
        getattr(sn, op)(*arrays)
    assert str(raised.value) == f"stc_numpy.{op}: {without_torch(text)}"


X = np.zeros((2, 6, 4), np.float32)
FRAME = np.zeros((4, 4, 3), np.uint8)
WRONG = [
    ("patch_similarity", (X.tolist(), X), "current must be a numpy.ndarray, but is a list"),
    ("patch_similarity", (X, X, None, X), "metric must be a str, but is a ndarray"),
    ("select_dynamic", (X, X, 1.5), "k must be an int, but is a float"),
    ("select_dynamic", (X, X, True), "k must be an int, but is a bool"),
    ("topk_gather", (X, X[:, :, 0], 1, X), "largest must be a bool, but is a ndarray"),
    (
        "patch_similarity",
        (X.astype(">f4"), X),
        "current must have dtype float32, but has dtype >f4",
    ),
    (
        "frame_difference",
        (FRAME.astype(np.float32), FRAME, 2),
        "current must have dtype uint8, but has dtype float32",
    ),
    ("frame_difference", (FRAME, FRAME, None), "patch must be an int, but is None"),
    ("frame_difference", (FRAME, FRAME, 0), "patch must be 1 or more, but is 0"),
    (
        "frame_difference",
        (FRAME[:, :, :2], FRAME, 2),
        "current must have shape [height, width, 3], but has shape [4, 4, 2]",
    ),
    (
        "frame_difference",
        (FRAME, FRAME[:3], 2),
        "reference must have shape [4, 4, 3] like current, but has shape [3, 4, 3]",
    ),
]


@pytest.mark.parametrize(("op", "args", "text"), WRONG)
def test_errors_of_its_own(op, args, text):
    wrong_type = "dtype" in text or " be a" in text
    with pytest.raises(TypeError if wrong_type else ValueError) as raised:
        getattr(sn, op)(*args)
    assert str(raised.value) == f"stc_numpy.{op}: {text}"


def test_nothing_is_computed_before_all_is_checked(monkeypatch):
    monkeypatch.setattr(sn, "_kernels", None)
    with pytest.raises(ValueError, match=r"k must be in 1\.\.6, but is 7"):
        sn.select_dynamic(X, X, 7)


MALFORMED = textwrap.dedent(
    """
    # Feeds one function with arguments of every wrong kind; what is no error or result ends us.
    import random
    import sys

    import numpy as np
    import stc_numpy as sn

    op, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    random.seed(seed)
    kinds = {
        "patch_similarity": "ttim", "select_dynamic": "ttkim", "topk_gather": "tskb",
        "frame_difference": "ffk",
    }[op]
    right = {"t": ((2, 6, 4), np.float32), "s": ((2, 6), np.float32), "f": ((4, 6, 3), np.uint8)}

    def array(shape, dtype):
        if random.random() < 0.2:
            shape = random.choice([(), (0,), (3,), (0, 6, 4), (2, 6, 0), (2, 0, 4), (1, 6, 4),
                                   (3, 6, 4), (4, 6), (1, 1, 1, 1), (6, 4, 3), (2, 6), (2, 6, 4)])
        if random.random() < 0.2:
            dtype = random.choice([np.float32, np.uint8, np.int64, np.float16, np.float64, np.bool_,
                                   np.complex64, object, "U3", ">f4", [("x", "f4")], "M8[s]"])
        x = np.zeros(shape, dtype)
        if x.dtype == np.float32:
            x[...] = np.random.default_rng(seed).standard_normal(shape) * 1e30
        kind = random.random()
        if kind < 0.15:
            x.flags.writeable = False
        elif kind < 0.2 and x.ndim > 1:
            x = np.asfortranarray(x)
        elif kind < 0.3 and x.ndim > 1:
            x = x[::-1, ::2]
        elif kind < 0.4:
            x = np.broadcast_to(x, (2, *x.shape))
        elif kind < 0.45:
            x = np.ma.masked_array(x)
        elif kind < 0.5 and x.ndim == 2:
            x = np.asmatrix(x) if x.dtype != object else x
        elif kind < 0.55 and x.dtype == np.float32:
            x = np.frombuffer(b"x" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
        return x

    def value(kind):
        if random.random() < 0.1:
            return random.choice([None, "x", 1.5, [], object(), -1, True, {}, 2**70, np.array(2)])
        if kind in right:
            return array(*right[kind])
        if kind == "i":
            return random.choice([None, np.array([0, 1]), np.array([0, 9]), np.array([-1, 0]),
                                  np.array([0]), np.zeros(2, np.int32), array(*right["t"])])
        if kind == "k":
            return random.choice([-(2**63), -1, 0, 1, 2, 3, 7, 2**31, np.int64(2), np.uint8(1)])
        if kind == "b":
            return random.choice([True, False, np.True_])
        return random.choice(["cosine", "l1", "l2", "dot", "", "a\\0b", "x" * 5000])

    refused = answered = 0
    for _ in range(count):
        least = len(kinds) - (2 if op in ("patch_similarity", "select_dynamic") else 1)
        args = [value(kind) for kind in kinds[: random.randint(least, len(kinds))]]
        try:
            getattr(sn, op)(*args)
            answered += 1
        except (ValueError, TypeError) as error:
            assert str(error).startswith((f"stc_numpy.{op}: ", f"{op}() missing")), error
            refused += 1
    print(refused, answered)
    """
)


@pytest.mark.parametrize("op", sn.__all__)
def test_malformed_arguments_end_in_clean_errors(op, seed):
    done = subprocess.run(
        [sys.executable, "-c", MALFORMED, op, "500", str(seed)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-2000:]}"
    refused, answered = map(int, done.stdout.split())
    assert refused + answered == 500 and refused > 100 and answered > 0
