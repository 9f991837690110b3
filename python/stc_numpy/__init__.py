"""Ops of Streaming Token Compression (arXiv 2512.00891) on NumPy arrays: no torch, here or there.

For processes that capture frames or pass tokens on. float32 arrays in any memory layout; the same
results as the torch ops of the same names in `stc_kernels`, on one core, with the interpreter free
for other threads meanwhile. It is installed with `stc_kernels`, or alone: ``docs/install.md``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

try:
    import stc_numpy._kernels as _kernels
except ModuleNotFoundError as error:
    if error.name != "stc_numpy._kernels":
        raise
    raise ImportError(
        f"stc_numpy has no compiled code in {Path(__file__).parent}: it was installed with "
        "STC_KERNELS_NO_EXT=1, or is imported from its source tree, which has not been built. "
        "Install a C++ compiler and the package again, or start Python in another directory"
    ) from None

__all__ = ["frame_difference", "patch_similarity", "select_dynamic", "topk_gather"]

_METRICS = ("cosine", "dot", "l1", "l2")


def patch_similarity(
    current: NDArray[np.float32],
    reference: NDArray[np.float32],
    reference_index: NDArray[np.int64] | None = None,
    metric: str = "cosine",
) -> NDArray[np.float32]:
    """Return how similar each token is to the reference token at the same place.

    As the torch op `stc_kernels.patch_similarity` (arXiv 2512.00891, section on STC-Cacher).

    Args:
        current: tokens of F frames, float32 [F, T, C].
        reference: reference tokens, float32 [R, T, C].
        reference_index: which reference each frame is held against, int64 [F] of values in
            0..R-1; None: R is 1, or R equals F and they pair up.
        metric: ``cosine``, ``dot``, ``l1`` or ``l2``.

    Returns:
        float32 [F, T].

    Raises:
        ValueError: a wrong shape, metric or index.
        TypeError: a wrong dtype, or not an array.
    """
    _check_similarity("patch_similarity", current, reference, reference_index, metric)
    return _similarity(current, reference, reference_index, metric)


def select_dynamic(
    current: NDArray[np.float32],
    reference: NDArray[np.float32],
    k: int,
    reference_index: NDArray[np.int64] | None = None,
    metric: str = "cosine",
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Choose the k tokens of each frame that are least similar to their reference.

    As the torch op `stc_kernels.select_dynamic` (arXiv 2512.00891, section on STC-Cacher).

    Args:
        current: tokens of F frames, float32 [F, T, C].
        reference: reference tokens, float32 [R, T, C].
        k: how many tokens a frame, 1..T.
        reference_index: as for `patch_similarity`.
        metric: ``cosine``, ``dot``, ``l1`` or ``l2``.

    Returns:
        index, int64 [F, k], ascending, and slot, int32 [F, T]: the place of each token in index,
        or −1.

    Raises:
        ValueError: a wrong shape, k, metric or index.
        TypeError: a wrong dtype, or not an array.
    """
    op = "select_dynamic"
    _check_similarity(op, current, reference, reference_index, metric)
    count = _count(op, "k", k, current.shape[1])
    similarity = _similarity(current, reference, reference_index, metric)
    index, slot = _kernels.select_scores(similarity, count, False, True)
    return index, slot


def topk_gather(
    tokens: NDArray[np.float32],
    scores: NDArray[np.float32],
    k: int,
    largest: bool = True,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Keep the k tokens of each frame with the highest (or lowest) score, in their order.

    As the torch op `stc_kernels.topk_gather`: ties go to the lower index, a score that is not
    finite counts as −∞.

    Args:
        tokens: float32 [F, T, D].
        scores: float32 [F, T].
        k: how many tokens a frame, 1..T.
        largest: keep the highest scores; False: the lowest.

    Returns:
        kept, float32 [F, k, D], and index, int64 [F, k], ascending.

    Raises:
        ValueError: a wrong shape or k.
        TypeError: a wrong dtype, or not an array.
    """
    op = "topk_gather"
    _check_tokens(op, "tokens", tokens)
    _check_dtype(op, "scores", scores, np.float32)
    if scores.shape != tokens.shape[:2]:
        _fail(op, "scores", f"have shape {_shape(tokens.shape[:2])}", f"has shape {_shape(scores)}")
    count = _count(op, "k", k, tokens.shape[1])
    _check_type(op, "largest", largest, "a bool", bool, np.bool_)
    index, _ = _kernels.select_scores(_plain(scores), count, bool(largest), False)
    return np.take_along_axis(tokens, index[:, :, None], axis=1), index


def frame_difference(
    current: NDArray[np.uint8], reference: NDArray[np.uint8], patch: int
) -> NDArray[np.float32]:
    """Return how much each patch of a camera frame differs from a reference frame.

    The cheap gate that a capture process can run before anything is sent to a GPU.

    Args:
        current: uint8 [H, W, 3].
        reference: uint8 [H, W, 3].
        patch: side of a patch in pixels, 1 or more. Patches at the right and lower edge are cut
            short where H or W is not a multiple.

    Returns:
        Mean absolute difference a patch, 0 (equal) to 1 (black against white), float32
        [ceil(H / patch), ceil(W / patch)].

    Raises:
        ValueError: a wrong shape or patch.
        TypeError: a wrong dtype, or not an array.
    """
    op = "frame_difference"
    for name, frame in (("current", current), ("reference", reference)):
        _check_dtype(op, name, frame, np.uint8)
        if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            _fail(op, name, "have shape [height, width, 3]", f"has shape {_shape(frame)}")
    if reference.shape != current.shape:
        shape = _shape(current)
        _fail(op, "reference", f"have shape {shape} like current", f"has shape {_shape(reference)}")
    side = _integer(op, "patch", patch)
    if side < 1:
        _fail(op, "patch", "be 1 or more", f"is {side}")
    # A patch larger than the frame is the whole frame.
    side = min(side, max(current.shape[:2]))
    difference: NDArray[np.float32] = _kernels.frame_difference(
        _plain(current), _plain(reference), side
    )
    return difference


def _similarity(
    current: NDArray[np.float32],
    reference: NDArray[np.float32],
    reference_index: NDArray[np.int64] | None,
    metric: str,
) -> NDArray[np.float32]:
    similarity: NDArray[np.float32] = _kernels.patch_similarity(
        _plain(current),
        _plain(reference),
        None if reference_index is None else _plain(reference_index),
        _METRICS.index(metric),
    )
    return similarity


def _check_similarity(
    op: str,
    current: NDArray[np.float32],
    reference: NDArray[np.float32],
    reference_index: NDArray[np.int64] | None,
    metric: str,
) -> None:
    _check_tokens(op, "current", current)
    _check_tokens(op, "reference", reference)
    frames, tokens, channels = current.shape
    if reference.shape[1:] != current.shape[1:]:
        must = f"have shape [references, {tokens}, {channels}] like current"
        _fail(op, "reference", must, f"has shape {_shape(reference)}")
    _check_type(op, "metric", metric, "a str", str)
    if metric not in _METRICS:
        _fail(op, "metric", "be cosine, dot, l1 or l2", f"is '{metric}'")
    count = reference.shape[0]
    if reference_index is None:
        if count not in (1, frames):
            must = f"hold 1 or {frames} references when reference_index is not given"
            _fail(op, "reference", must, f"holds {count}")
    else:
        _check_dtype(op, "reference_index", reference_index, np.int64)
        if reference_index.shape != (frames,):
            shape = _shape(reference_index)
            _fail(op, "reference_index", f"have shape [{frames}]", f"has shape {shape}")
        wrong = reference_index[(reference_index < 0) | (reference_index >= count)]
        if wrong.size:
            _fail(op, "reference_index", f"hold values in 0..{count - 1}", f"holds {wrong[0]}")


def _check_tokens(op: str, name: str, array: NDArray[Any]) -> None:
    if isinstance(array, np.ndarray) and array.ndim != 3:
        _fail(op, name, "have shape [frames, tokens, channels]", f"has shape {_shape(array)}")
    _check_dtype(op, name, array, np.float32)
    if 0 in array.shape[1:]:
        _fail(op, name, "have at least one token and one channel", f"has shape {_shape(array)}")


def _check_dtype(op: str, name: str, array: NDArray[Any], dtype: type[np.generic]) -> None:
    _check_type(op, name, array, "a numpy.ndarray", np.ndarray)
    if array.dtype != dtype:
        must = f"have dtype {dtype.__name__}"
        _fail(op, name, must, f"has dtype {array.dtype}", TypeError)


def _check_type(op: str, name: str, value: object, must: str, *kinds: type) -> None:
    if not isinstance(value, kinds):
        but = "is None" if value is None else f"is a {type(value).__name__}"
        _fail(op, name, f"be {must}", but, TypeError)


def _count(op: str, name: str, value: int, limit: int) -> int:
    count = _integer(op, name, value)
    if not 1 <= count <= limit:
        _fail(op, name, f"be in 1..{limit}", f"is {count}")
    return count


def _integer(op: str, name: str, value: int) -> int:
    if isinstance(value, bool):
        _fail(op, name, "be an int", "is a bool", TypeError)
    _check_type(op, name, value, "an int", int, np.integer)
    return int(value)


def _fail(
    op: str, argument: str, must: str, but: str, error: type[Exception] = ValueError
) -> NoReturn:
    raise error(f"stc_numpy.{op}: {argument} must {must}, but {but}")


def _shape(value: NDArray[Any] | tuple[int, ...]) -> str:
    shape = value.shape if isinstance(value, np.ndarray) else value
    return f"[{', '.join(map(str, shape))}]"


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    # The kernels read aligned values in C order; other arrays are copied.
    return np.require(array, requirements=("C", "A"))
