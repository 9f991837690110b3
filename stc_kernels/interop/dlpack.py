"""The ops on arrays of any framework that speaks DLPack: CuPy, JAX, NumPy, …

The arguments are those of the functions of the same names in `stc_kernels`, with arrays in place of
tensors. Nothing is copied: torch sees the arrays' own memory, and the results, arrays of the first
argument's framework, are torch's memory. On a GPU the work is ordered by both frameworks' current
streams. Errors are those of `stc_kernels`, and a ``ValueError`` for negative strides, which torch
has not; an array that cannot be exported (a NumPy array of bfloat16, say) raises its framework's
``BufferError``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

import stc_kernels
from stc_kernels.interop._tensors import as_tensor

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


def patch_similarity(
    current: Any, reference: Any, reference_index: Any = None, metric: str = "cosine"
) -> Any:
    """Return each token's similarity to its reference: [F, T, C], [R, T, C] → float32 [F, T]."""
    return _call("patch_similarity", current, reference, reference_index, metric)


def select_dynamic(
    current: Any, reference: Any, k: int, reference_index: Any = None, metric: str = "cosine"
) -> tuple[Any, Any]:
    """Choose the k least similar tokens: index, int64 [F, k], and slot, int32 [F, T]."""
    index, slot = _call("select_dynamic", current, reference, k, reference_index, metric)
    return index, slot


def gather_tokens(tokens: Any, index: Any) -> Any:
    """Return the tokens that an index names: [F, T, C], int64 [F, k] → [F, k, C]."""
    return _call("gather_tokens", tokens, index)


def merge_tokens(
    updated: Any, cached: Any, slot: Any, reference_index: Any = None, residual: Any = None
) -> Any:
    """Put recomputed and reused tokens together: [F, k, C], [R, T, C], [F, T] → [F, T, C]."""
    return _call("merge_tokens", updated, cached, slot, reference_index, residual)


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
    merged, normed = _call(
        "merge_tokens_norm", updated, cached, slot, weight, bias, reference_index, residual, eps
    )
    return merged, normed


def layer_norm_gather(
    tokens: Any, index: Any, weight: Any, bias: Any = None, added: Any = None, eps: float = 1e-6
) -> tuple[Any, Any]:
    """Return the tokens that an index names and their layer norm: [F, k, C] twice."""
    gathered, normed = _call("layer_norm_gather", tokens, index, weight, bias, added, eps)
    return gathered, normed


def quiet_channels(tokens: Any, keep: int) -> Any:
    """Return the channels of lowest variance: [F, T, D] → int64 [keep]."""
    return _call("quiet_channels", tokens, keep)


def anchor_scores(
    tokens: Any,
    temporal_anchor: Any = None,
    strategy: str = "dual_anchor",
    alpha: float = 0.5,
    channels: Any = None,
) -> Any:
    """Return each token's novelty: [F, T, D], past [D] or [F, D] → float32 [F, T]."""
    return _call("anchor_scores", tokens, temporal_anchor, strategy, alpha, channels)


def topk_gather(tokens: Any, scores: Any, k: int, largest: bool = True) -> tuple[Any, Any]:
    """Keep the k tokens of highest (or lowest) score: kept [F, k, D], index int64 [F, k]."""
    kept, index = _call("topk_gather", tokens, scores, k, largest)
    return kept, index


def prune_tokens(
    tokens: Any,
    k: int,
    temporal_anchor: Any = None,
    strategy: str = "dual_anchor",
    alpha: float = 0.5,
    channels: Any = None,
) -> tuple[Any, Any]:
    """Keep the k most novel tokens: kept [F, k, D], index int64 [F, k]."""
    kept, index = _call("prune_tokens", tokens, k, temporal_anchor, strategy, alpha, channels)
    return kept, index


def _call(op: str, *arguments: Any) -> Any:
    schema = getattr(torch.ops.stc_kernels, op).default._schema
    names = (argument.name for argument in schema.arguments)
    tensors = [as_tensor(op, *pair) for pair in zip(names, arguments, strict=True)]
    result = getattr(stc_kernels, op)(*tensors)
    namespace = _namespace(arguments[0])
    if isinstance(result, tuple):
        return tuple(namespace.from_dlpack(tensor) for tensor in result)
    return namespace.from_dlpack(result)


def _namespace(array: Any) -> Any:
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    return import_module(type(array).__module__.partition(".")[0])
