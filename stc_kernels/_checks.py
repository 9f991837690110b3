"""The argument checks of every op, for the implementations written in Python.

The CPU kernels make the same checks, in the same order and with the same words, in ``csrc/torch/``
(``arguments.cpp`` and each op's own file); ``tests/ops/test_errors.py`` holds the two against each
other.
A check raises ``RuntimeError``, which the public functions turn into ``ValueError`` or
``TypeError`` (see ``_library.public_error``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from stc_kernels._sizes import holds, known

TOKEN_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
METRICS = ("cosine", "dot", "l1", "l2")
STRATEGIES = ("dual_anchor", "gaussian")


def patch_similarity(
    current: Tensor,
    reference: Tensor,
    reference_index: Tensor | None = None,
    metric: str = "cosine",
) -> None:
    """Check the arguments of `patch_similarity`."""
    _similarity("patch_similarity", current, reference, reference_index, metric)


def select_dynamic(
    current: Tensor,
    reference: Tensor,
    k: int,
    reference_index: Tensor | None = None,
    metric: str = "cosine",
) -> None:
    """Check the arguments of `select_dynamic`."""
    _similarity("select_dynamic", current, reference, reference_index, metric)
    _count("select_dynamic", "k", k, current.shape[1])


def gather_tokens(tokens: Tensor, index: Tensor) -> None:
    """Check the arguments of `gather_tokens`."""
    _gather("gather_tokens", tokens, index)


def layer_norm_gather(
    tokens: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    added: Tensor | None = None,
    eps: float = 1e-6,
) -> None:
    """Check the arguments of `layer_norm_gather`."""
    op = "layer_norm_gather"
    _gather(op, tokens, index)
    _norm(op, weight, bias, eps, tokens, "tokens")
    if added is not None:
        _tokens(op, "added", added, may_be_empty=True)
        _like(op, "added", added, "tokens", tokens)
        _same_shape(op, "added", added, (*index.shape, tokens.shape[2]))


def merge_tokens(
    updated: Tensor,
    cached: Tensor,
    slot: Tensor,
    reference_index: Tensor | None = None,
    residual: Tensor | None = None,
) -> None:
    """Check the arguments of `merge_tokens`."""
    _merge("merge_tokens", updated, cached, slot, reference_index, residual)


def merge_tokens_norm(
    updated: Tensor,
    cached: Tensor,
    slot: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    reference_index: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
) -> None:
    """Check the arguments of `merge_tokens_norm`."""
    op = "merge_tokens_norm"
    _merge(op, updated, cached, slot, reference_index, residual)
    _norm(op, weight, bias, eps, cached, "cached")


def quiet_channels(tokens: Tensor, keep: int) -> None:
    """Check the arguments of `quiet_channels`."""
    _tokens("quiet_channels", "tokens", tokens)
    _count("quiet_channels", "keep", keep, tokens.shape[2])


def anchor_scores(
    tokens: Tensor,
    temporal_anchor: Tensor | None = None,
    strategy: str = "dual_anchor",
    alpha: float = 0.5,
    channels: Tensor | None = None,
) -> None:
    """Check the arguments of `anchor_scores`."""
    _scores("anchor_scores", tokens, temporal_anchor, strategy, alpha, channels)


def topk_gather(tokens: Tensor, scores: Tensor, k: int, largest: bool = True) -> None:
    """Check the arguments of `topk_gather`."""
    op = "topk_gather"
    _tokens(op, "tokens", tokens)
    frames, length, _ = tokens.shape
    _integers(op, "scores", scores, torch.float32, tokens, "tokens")
    _same_shape(op, "scores", scores, (frames, length))
    _no_grad(op, "scores", scores)
    _count(op, "k", k, length)


def prune_tokens(
    tokens: Tensor,
    k: int,
    temporal_anchor: Tensor | None = None,
    strategy: str = "dual_anchor",
    alpha: float = 0.5,
    channels: Tensor | None = None,
) -> None:
    """Check the arguments of `prune_tokens`."""
    _scores("prune_tokens", tokens, temporal_anchor, strategy, alpha, channels)
    _count("prune_tokens", "k", k, tokens.shape[1])


def _similarity(
    op: str, current: Tensor, reference: Tensor, reference_index: Tensor | None, metric: str
) -> None:
    _tokens(op, "current", current)
    _tokens(op, "reference", reference)
    _like(op, "reference", reference, "current", current)
    _frame_shape(op, "reference", reference, "current", current)
    _choice(op, "metric", metric, METRICS)
    _reference_index(op, reference_index, reference, "reference", current.shape[0])


def _gather(op: str, tokens: Tensor, index: Tensor) -> None:
    _tokens(op, "tokens", tokens)
    frames, length, _ = tokens.shape
    _integers(op, "index", index, torch.int64, tokens, "tokens")
    if index.dim() != 2 or not holds(index.shape[0] == frames):
        _fail(op, "index", f"have shape [{frames}, k]", f"has shape {_shape(index)}")
    _range(op, "index", index, 0, length)


def _merge(
    op: str,
    updated: Tensor,
    cached: Tensor,
    slot: Tensor,
    reference_index: Tensor | None,
    residual: Tensor | None,
) -> None:
    _tokens(op, "cached", cached)
    _tokens(op, "updated", updated, may_be_empty=True)
    _like(op, "updated", updated, "cached", cached)
    frames, chosen, channels = updated.shape
    length = cached.shape[1]
    if not holds(channels == cached.shape[2]):
        must = f"have {cached.shape[2]} channels like cached"
        _fail(op, "updated", must, f"has shape {_shape(updated)}")
    _integers(op, "slot", slot, torch.int32, cached, "cached")
    _same_shape(op, "slot", slot, (frames, length))
    _range(op, "slot", slot, -1, chosen)
    _reference_index(op, reference_index, cached, "cached", frames)
    if residual is not None:
        _tokens(op, "residual", residual)
        _like(op, "residual", residual, "cached", cached)
        _same_shape(op, "residual", residual, (frames, length, channels))


def _norm(
    op: str, weight: Tensor, bias: Tensor | None, eps: float, tokens: Tensor, tokens_name: str
) -> None:
    _tensor(op, "weight", weight)
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is None:
            continue
        if vector.dtype not in (torch.float32, tokens.dtype):
            must = "have dtype float32 or that of the tokens"
            _fail(op, name, must, f"has dtype {_dtype(vector)}")
        _device(op, name, vector, tokens_name, tokens)
        _same_shape(op, name, vector, (tokens.shape[2],))
        _no_grad(op, name, vector)
    if not eps >= 0:
        _fail(op, "eps", "be 0 or more", f"is {_number(eps)}")


def _scores(
    op: str,
    tokens: Tensor,
    temporal_anchor: Tensor | None,
    strategy: str,
    alpha: float,
    channels: Tensor | None,
) -> None:
    _tokens(op, "tokens", tokens)
    frames, _, width = tokens.shape
    _choice(op, "strategy", strategy, STRATEGIES)
    if not 0.0 <= alpha <= 1.0:
        _fail(op, "alpha", "be in 0..1", f"is {_number(alpha)}")
    if channels is not None:
        _integers(op, "channels", channels, torch.int64, tokens, "tokens")
        if channels.dim() != 1 or not holds(channels.shape[0] >= 1):
            _fail(op, "channels", "have shape [c], c at least 1", f"has shape {_shape(channels)}")
        _range(op, "channels", channels, 0, width)
        width = channels.shape[0]
    if temporal_anchor is not None:
        if temporal_anchor.dtype not in (torch.float32, tokens.dtype):
            _fail(
                op,
                "temporal_anchor",
                "have dtype float32 or that of tokens",
                f"has dtype {_dtype(temporal_anchor)}",
            )
        _device(op, "temporal_anchor", temporal_anchor, "tokens", tokens)
        # By dimension first: frames compared with channels would specialise a traced graph.
        wanted = (width,) if temporal_anchor.dim() == 1 else (frames, width)
        if not _has_shape(temporal_anchor, wanted):
            _fail(
                op,
                "temporal_anchor",
                f"have shape [{width}] or [{frames}, {width}]",
                f"has shape {_shape(temporal_anchor)}",
            )
        _no_grad(op, "temporal_anchor", temporal_anchor)


def _fail(op: str, argument: str, must: str, but: str) -> NoReturn:
    raise RuntimeError(f"stc_kernels.{op}: {argument} must {must}, but {but}")


def _tensor(op: str, name: str, tensor: Tensor | None) -> None:
    # torch lets None pass for a Tensor argument.
    if tensor is None:
        _fail(op, name, "be a tensor", "is None")


def _tokens(op: str, name: str, tensor: Tensor, may_be_empty: bool = False) -> None:
    _tensor(op, name, tensor)
    if tensor.dim() != 3:
        _fail(op, name, "have shape [frames, tokens, channels]", f"has shape {_shape(tensor)}")
    if tensor.dtype not in TOKEN_DTYPES:
        _fail(op, name, "have dtype float32, float16 or bfloat16", f"has dtype {_dtype(tensor)}")
    if not holds(tensor.shape[2] >= 1) or not (may_be_empty or holds(tensor.shape[1] >= 1)):
        _fail(op, name, "have at least one token and one channel", f"has shape {_shape(tensor)}")
    _no_grad(op, name, tensor)


def _like(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.dtype != other.dtype:
        _fail(
            op, name, f"have dtype {_dtype(other)} like {other_name}", f"has dtype {_dtype(tensor)}"
        )
    _device(op, name, tensor, other_name, other)


def _frame_shape(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if not _has_shape(tensor, (tensor.shape[0], *other.shape[1:])):
        _fail(
            op,
            name,
            f"have shape [references, {other.shape[1]}, {other.shape[2]}] like {other_name}",
            f"has shape {_shape(tensor)}",
        )


def _same_shape(op: str, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if not _has_shape(tensor, shape):
        _fail(op, name, f"have shape {_sizes(shape)}", f"has shape {_shape(tensor)}")


def _has_shape(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    if tensor.dim() != len(shape):
        return False
    return all(holds(size == wanted) for size, wanted in zip(tensor.shape, shape, strict=True))


def _reference_index(
    op: str, index: Tensor | None, reference: Tensor, name: str, frames: int
) -> None:
    count = reference.shape[0]
    if index is None:
        # Of a number that a tracer doesn't know one can't be excluded: they must pair up.
        if not known(count == 1) and not holds(count == frames):
            _fail(
                op,
                name,
                f"hold 1 or {frames} references when reference_index is not given",
                f"holds {count}",
            )
        return
    _integers(op, "reference_index", index, torch.int64, reference, name)
    if not _has_shape(index, (frames,)):
        _fail(op, "reference_index", f"have shape [{frames}]", f"has shape {_shape(index)}")
    _range(op, "reference_index", index, 0, count)


def _integers(
    op: str, name: str, tensor: Tensor, dtype: torch.dtype, other: Tensor, other_name: str
) -> None:
    _tensor(op, name, tensor)
    if tensor.dtype != dtype:
        _fail(op, name, f"have dtype {str(dtype)[6:]}", f"has dtype {_dtype(tensor)}")
    _device(op, name, tensor, other_name, other)


def _range(op: str, name: str, tensor: Tensor, low: int, end: int) -> None:
    # Values are read on the CPU alone: elsewhere looking at them would stall the device.
    if tensor.device.type != "cpu" or _has_no_values(tensor) or tensor.numel() == 0:
        return
    wrong = (tensor < low) | (tensor >= end)
    if bool(wrong.any()):
        value = int(tensor[wrong][0])
        _fail(op, name, f"hold values in {low}..{end - 1}", f"holds {value}")


def _has_no_values(tensor: Tensor) -> bool:
    return isinstance(tensor, torch._subclasses.FakeTensor) or tensor.is_meta


def _device(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        _fail(op, name, f"be on device {other.device} like {other_name}", f"is on {tensor.device}")


def _no_grad(op: str, name: str, tensor: Tensor) -> None:
    if torch.is_grad_enabled() and tensor.requires_grad:
        refuse_grad(op, name)


def refuse_grad(op: str, name: str) -> NoReturn:
    """Raise what is said of an argument that requires grad."""
    _fail(op, name, "not require grad in grad mode (the op has no gradient)", "does")


def _choice(op: str, name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        _fail(op, name, f"be {', '.join(choices[:-1])} or {choices[-1]}", f"is '{value}'")


def _count(op: str, name: str, value: int, limit: int) -> None:
    if not (holds(value >= 1) and holds(value <= limit)):
        _fail(op, name, f"be in 1..{limit}", f"is {value}")


def _shape(tensor: Tensor) -> str:
    return _sizes(tuple(tensor.shape))


def _sizes(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype)[len("torch.") :]


def _number(value: float) -> str:
    return f"{value:g}"
