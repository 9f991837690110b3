"""The ops on JAX arrays, on the CPU.

The arguments are those of the functions of the same names in `stc_kernels`, with JAX arrays in
place of tensors. Called on arrays nothing is copied, in or out (DLPack). Under ``jax.jit`` an op
becomes a ``jax.pure_callback``, for which JAX copies the arrays: shapes are checked while tracing,
numbers and names must be static, and ``jax.vmap`` calls it once a row. No gradients, as in torch.

Indices are JAX's default integer: int32, or int64 where ``jax_enable_x64`` is set; both are taken.

Errors: ValueError and TypeError with the ops' words; what only the values show (an index out of
range) is raised while a compiled function runs, by JAX, as its own runtime error around them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

import stc_kernels
from stc_kernels.interop._optional import require
from stc_kernels.interop._tensors import as_tensor

jax = require("jax", "jax", "jax")

__all__ = [
    "anchor_scores",
    "gather_tokens",
    "layer_norm_gather",
    "merge_tokens",
    "merge_tokens_norm",
    "patch_similarity",
    "prune_tokens",
    "quiet_channels",
    "select_dynamic",
    "topk_gather",
]

# The arguments that the ops want as int64.
_INDICES = ("channels", "index", "reference_index")


def patch_similarity(
    current: Any, reference: Any, reference_index: Any = None, metric: str = "cosine"
) -> Any:
    """Return each token's similarity to its reference: [F, T, C], [R, T, C] → float32 [F, T]."""
    arrays = {"current": current, "reference": reference, "reference_index": reference_index}
    return _call("patch_similarity", arrays, metric=metric)


def select_dynamic(
    current: Any, reference: Any, k: int, reference_index: Any = None, metric: str = "cosine"
) -> tuple[Any, Any]:
    """Choose the k least similar tokens: index, int [F, k], and slot, int32 [F, T]."""
    arrays = {"current": current, "reference": reference, "reference_index": reference_index}
    index, slot = _call("select_dynamic", arrays, k=k, metric=metric)
    return index, slot


def gather_tokens(tokens: Any, index: Any) -> Any:
    """Return the tokens that an index names: [F, T, C], int [F, k] → [F, k, C]."""
    return _call("gather_tokens", {"tokens": tokens, "index": index})


def merge_tokens(
    updated: Any, cached: Any, slot: Any, reference_index: Any = None, residual: Any = None
) -> Any:
    """Put recomputed and reused tokens together: [F, k, C], [R, T, C], [F, T] → [F, T, C]."""
    arrays = {"updated": updated, "cached": cached, "slot": slot}
    arrays |= {"reference_index": reference_index, "residual": residual}
    return _call("merge_tokens", arrays)


def merge_tokens_norm(
    updated: Any,
    cached: Any,
    slot: Any,
    weight: Any,
    bias: Any = None,
    reference_index: Any = None,
    residual: Any = None,
    eps: float = 1e-6,
) -> tuple[Any, Any]:
    """As `merge_tokens`, and the layer norm of the result: [F, T, C] twice."""
    arrays = {"updated": updated, "cached": cached, "slot": slot, "weight": weight, "bias": bias}
    arrays |= {"reference_index": reference_index, "residual": residual}
    merged, normed = _call("merge_tokens_norm", arrays, eps=eps)
    return merged, normed


def layer_norm_gather(
    tokens: Any, index: Any, weight: Any, bias: Any = None, added: Any = None, eps: float = 1e-6
) -> tuple[Any, Any]:
    """Return the tokens that an index names and their layer norm: [F, k, C] twice."""
    arrays = {"tokens": tokens, "index": index, "weight": weight, "bias": bias, "added": added}
    gathered, normed = _call("layer_norm_gather", arrays, eps=eps)
    return gathered, normed


def quiet_channels(tokens: Any, keep: int) -> Any:
    """Return the channels of lowest variance: [F, T, D] → int [keep]."""
    return _call("quiet_channels", {"tokens": tokens}, keep=keep)


def anchor_scores(
    tokens: Any,
    temporal_anchor: Any = None,
    strategy: str = "dual_anchor",
    alpha: float = 0.5,
    channels: Any = None,
) -> Any:
    """Return each token's novelty: [F, T, D], past [D] or [F, D] → float32 [F, T]."""
    arrays = {"tokens": tokens, "temporal_anchor": temporal_anchor, "channels": channels}
    return _call("anchor_scores", arrays, strategy=strategy, alpha=alpha)


def topk_gather(tokens: Any, scores: Any, k: int, largest: bool = True) -> tuple[Any, Any]:
    """Keep the k tokens of highest (or lowest) score: kept [F, k, D], index int [F, k]."""
    kept, index = _call("topk_gather", {"tokens": tokens, "scores": scores}, k=k, largest=largest)
    return kept, index


def prune_tokens(
    tokens: Any,
    k: int,
    temporal_anchor: Any = None,
    strategy: str = "dual_anchor",
    alpha: float = 0.5,
    channels: Any = None,
) -> tuple[Any, Any]:
    """Keep the k most novel tokens: kept [F, k, D], index int [F, k]."""
    arrays = {"tokens": tokens, "temporal_anchor": temporal_anchor, "channels": channels}
    kept, index = _call("prune_tokens", arrays, k=k, strategy=strategy, alpha=alpha)
    return kept, index


def _call(op: str, arrays: dict[str, Any], **options: Any) -> Any:
    for name, option in options.items():
        if isinstance(option, jax.core.Tracer):
            raise TypeError(
                f"stc_kernels.{op}: {name} must be known while jax.jit traces, but is a traced "
                f"array: jax.jit(..., static_argnames='{name}')"
            )
    given = {name: array for name, array in arrays.items() if array is not None}
    run = partial(_run, op, options)
    if any(isinstance(array, jax.core.Tracer) for array in given.values()):
        promised = _map(_promise, run({name: _shape_of(array) for name, array in given.items()}))
        compute = partial(_compute, op, run)
        return jax.pure_callback(compute, promised, given, vmap_method="sequential")
    return _map(jax.numpy.from_dlpack, run(_tensors(op, given)))


def _run(op: str, options: dict[str, Any], tensors: dict[str, Any]) -> Any:
    for name in _INDICES:
        if name in tensors and tensors[name].dtype == torch.int32:
            tensors[name] = tensors[name].long()
    return getattr(stc_kernels, op)(**tensors, **options)


def _compute(op: str, run: Callable[[dict[str, Any]], Any], arrays: dict[str, Any]) -> Any:
    """Run an op from a compiled function; in here no JAX function may be called."""
    return _map(_numpy, run(_tensors(op, arrays)))


def _tensors(op: str, arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: as_tensor(op, name, array) for name, array in arrays.items()}


def _numpy(tensor: Any) -> Any:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(jax.numpy.bfloat16)
    return tensor.numpy().astype(_default(tensor.numpy().dtype), copy=False)


def _shape_of(array: Any) -> Any:
    """A tensor without memory: enough for an op's checks and its results' shapes."""
    if not hasattr(array, "shape"):
        return array
    return torch.empty(array.shape, dtype=getattr(torch, str(array.dtype)), device="meta")


def _promise(tensor: Any) -> Any:
    dtype = np.dtype(getattr(jax.numpy, str(tensor.dtype).removeprefix("torch.")))
    return jax.ShapeDtypeStruct(tuple(tensor.shape), _default(dtype))


def _default(dtype: Any) -> Any:
    """JAX has no int64 unless ``jax_enable_x64`` is set."""
    return jax.dtypes.canonicalize_dtype(dtype)


def _map(function: Callable[[Any], Any], result: Any) -> Any:
    if isinstance(result, tuple):
        return tuple(function(tensor) for tensor in result)
    return function(result)
