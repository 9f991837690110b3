"""The ops in standard ONNX operators, for ``torch.onnx.export(..., dynamo=True)``.

Pass `translation_table` as ``custom_translation_table``: a model that uses the ops is then exported
to opset 18 or newer and needs nothing of ours where it runs. Frame counts may be dynamic; k, names
and numbers are those of the export. An exported op checks nothing, and its scores may differ from
ours in the last bits, since ONNX does not say in which order a sum is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan
from typing import Any

import torch

from stc_kernels.interop._optional import require
from stc_kernels.ops.anchor_scores.naive import BANDWIDTHS
from stc_kernels.ops.patch_similarity.naive import NORM_FLOOR

op = require("onnxscript", "onnx", "onnxscript").opset18

__all__ = ["translation_table"]

# onnx.TensorProto's numbers for dtypes.
_FLOAT, _INT32, _INT64, _DOUBLE = 1, 6, 7, 11


def translation_table() -> dict[Any, Callable[..., Any]]:
    """Return how each op is written in ONNX, for ``torch.onnx.export``."""
    translations = (
        _patch_similarity,
        _select_dynamic,
        _gather_tokens,
        _merge_tokens,
        _merge_tokens_norm,
        _layer_norm_gather,
        _quiet_channels,
        _anchor_scores,
        _topk_gather,
        _prune_tokens,
    )
    ours = torch.ops.stc_kernels
    return {getattr(ours, function.__name__[1:]).default: function for function in translations}


def _patch_similarity(
    current: Any, reference: Any, reference_index: Any = None, metric: str = "cosine"
) -> Any:
    a = _float(current)
    b = _float(_paired(reference, reference_index))
    if metric == "cosine":
        return _cosine(a, b)
    if metric == "dot":
        return _sum(op.Mul(a, b), -1)
    difference = op.Sub(a, b)
    if metric == "l1":
        return op.Neg(_sum(op.Abs(difference), -1))
    return op.Neg(op.Sqrt(_sum(op.Mul(difference, difference), -1)))


def _select_dynamic(
    current: Any, reference: Any, k: int, reference_index: Any = None, metric: str = "cosine"
) -> tuple[Any, Any]:
    similarity = _patch_similarity(current, reference, reference_index, metric)
    index = _topk_index(similarity, k, largest=False)
    nowhere = op.Expand(_int32(-1), op.Shape(similarity))
    places = op.Expand(_int32(*range(k)), op.Shape(index))
    return index, op.ScatterElements(nowhere, index, places, axis=1)


def _gather_tokens(tokens: Any, index: Any) -> Any:
    return op.GatherND(tokens, op.Unsqueeze(index, _ints(-1)), batch_dims=1)


def _merge_tokens(
    updated: Any, cached: Any, slot: Any, reference_index: Any = None, residual: Any = None
) -> Any:
    reused = _paired(cached, reference_index)
    if residual is not None:
        reused = op.CastLike(op.Add(_float(reused), _float(residual)), cached)
    recomputed = op.GreaterOrEqual(slot, _int32(0))
    place = op.Cast(op.Where(recomputed, slot, _int32(0)), to=_INT64)
    return op.Where(op.Unsqueeze(recomputed, _ints(-1)), _gather_tokens(updated, place), reused)


def _merge_tokens_norm(
    updated: Any,
    cached: Any,
    slot: Any,
    weight: Any,
    bias: Any = None,
    reference_index: Any = None,
    residual: Any = None,
    eps: float = 1e-6,
) -> tuple[Any, Any]:
    merged = _merge_tokens(updated, cached, slot, reference_index, residual)
    return merged, _layer_norm(merged, weight, bias, eps)


def _layer_norm_gather(
    tokens: Any, index: Any, weight: Any, bias: Any = None, added: Any = None, eps: float = 1e-6
) -> tuple[Any, Any]:
    gathered = _gather_tokens(tokens, index)
    if added is not None:
        gathered = op.CastLike(op.Add(_float(gathered), _float(added)), tokens)
    return gathered, _layer_norm(gathered, weight, bias, eps)


def _quiet_channels(tokens: Any, keep: int) -> Any:
    z = op.Cast(tokens, to=_DOUBLE)
    deviation = op.Sub(z, op.ReduceMean(z, _ints(0, 1)))
    variance = _float(op.ReduceMean(op.Mul(deviation, deviation), _ints(0, 1), keepdims=0))
    variance = op.Where(_finite(variance), variance, _number(inf))
    _, quietest = op.TopK(variance, _ints(keep), axis=0, largest=0)
    return quietest


def _anchor_scores(
    tokens: Any,
    temporal_anchor: Any = None,
    strategy: str = "dual_anchor",
    alpha: float = 0.5,
    channels: Any = None,
) -> Any:
    z = _float(tokens)
    if channels is not None:
        z = op.Gather(z, channels, axis=2)
    finite = _finite(_sum(op.Mul(z, z), -1, keepdims=1))  # [F, T, 1]
    if strategy == "gaussian":
        z = op.Where(finite, _unit(z), _number(nan))
    count = op.Max(_sum(_float(finite), 1, keepdims=1), _number(1.0))
    spatial = op.Div(_sum(op.Where(finite, z, _number(0.0)), 1, keepdims=1), count)  # [F, 1, D]
    # [D] becomes [1, D] and [F, D] becomes [F, 1, D].
    temporal = None
    if temporal_anchor is not None:
        temporal = op.Unsqueeze(_float(temporal_anchor), _ints(-2))
    if strategy == "gaussian":
        closeness = _gaussian(z, spatial)
        if temporal is not None:
            closeness = op.Add(closeness, _gaussian(z, _unit(temporal)))
        return op.Neg(closeness)
    novelty = op.Sub(_number(1.0), _cosine(z, spatial))
    if temporal is None:
        return novelty
    past = op.Sub(_number(1.0), _cosine(z, temporal))
    return op.Add(op.Mul(_number(alpha), past), op.Mul(_number(1 - alpha), novelty))


def _topk_gather(tokens: Any, scores: Any, k: int, largest: bool = True) -> tuple[Any, Any]:
    index = _topk_index(scores, k, largest)
    return _gather_tokens(tokens, index), index


def _prune_tokens(
    tokens: Any,
    k: int,
    temporal_anchor: Any = None,
    strategy: str = "dual_anchor",
    alpha: float = 0.5,
    channels: Any = None,
) -> tuple[Any, Any]:
    scores = _anchor_scores(tokens, temporal_anchor, strategy, alpha, channels)
    return _topk_gather(tokens, scores, k)


def _topk_index(scores: Any, k: int, largest: bool) -> Any:
    # TopK gives the lower index of equal scores first, as the ops do.
    scores = op.Where(_finite(scores), scores, _number(-inf))
    _, best = op.TopK(scores, _ints(k), axis=1, largest=int(largest))
    ascending, _ = op.TopK(best, _ints(k), axis=1, largest=0)
    return ascending


def _paired(reference: Any, reference_index: Any) -> Any:
    # One reference for all frames is broadcast by what follows.
    if reference_index is None:
        return reference
    return op.Gather(reference, reference_index, axis=0)


def _cosine(a: Any, b: Any) -> Any:
    norm_a, norm_b = _norm(a, keepdims=0), _norm(b, keepdims=0)
    floor = _number(NORM_FLOOR)
    cosine = op.Div(_sum(op.Mul(a, b), -1), op.Mul(op.Max(norm_a, floor), op.Max(norm_b, floor)))
    return op.Where(op.And(_finite(norm_a), _finite(norm_b)), cosine, _number(nan))


def _gaussian(z: Any, center: Any) -> Any:
    difference = op.Sub(z, center)
    distance = _sum(op.Mul(difference, difference), -1)
    terms = [op.Exp(op.Mul(distance, _number(-1 / (2 * a)))) for a in BANDWIDTHS]
    return op.Sum(*terms)


def _unit(z: Any) -> Any:
    return op.Div(z, op.Max(_norm(z, keepdims=1), _number(NORM_FLOOR)))


def _norm(z: Any, keepdims: int) -> Any:
    return op.Sqrt(_sum(op.Mul(z, z), -1, keepdims))


def _layer_norm(z: Any, weight: Any, bias: Any, eps: float) -> Any:
    scale = _float(weight)
    shift = None if bias is None else _float(bias)
    normed, *_ = op.LayerNormalization(_float(z), scale, shift, axis=-1, epsilon=eps)
    return op.CastLike(normed, z)


def _finite(z: Any) -> Any:
    return op.Not(op.Or(op.IsNaN(z), op.IsInf(z)))


def _sum(z: Any, axis: int, keepdims: int = 0) -> Any:
    return op.ReduceSum(z, _ints(axis), keepdims=keepdims)


def _float(z: Any) -> Any:
    return op.Cast(z, to=_FLOAT)


def _number(value: float) -> Any:
    return op.Constant(value_float=value)


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=values)


def _int32(*values: int) -> Any:
    return op.Cast(_ints(*values), to=_INT32)
