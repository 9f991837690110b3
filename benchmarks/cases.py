"""What is timed: each op at real models' shapes, with its inputs, fewest bytes and right answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.shapes import (
    DEFAULT_TOWER,
    FRAMES,
    LLM_WIDTHS,
    PRUNER_KEPT,
    PRUNER_TOKENS,
    TOWERS,
)
from stc_kernels.testing import naive, score_tolerance
from stc_stream.ratios import share_of

Check = Callable[[Any], None]
UPDATE_RATIO = 0.25
DTYPES = ("float32", "bfloat16")
_CACHER_OPS = (
    "patch_similarity",
    "select_dynamic",
    "gather_tokens",
    "merge_tokens",
    "merge_tokens_norm",
    "layer_norm_gather",
)
_PRUNER_OPS = ("quiet_channels", "anchor_scores", "topk_gather", "prune_tokens")
OPS = _CACHER_OPS + _PRUNER_OPS
"""Every op."""


@dataclass(frozen=True)
class Case:
    """One op at one size.

    Attributes:
        op: name of the op.
        model: whose shape this is.
        frames: F.
        tokens: tokens a frame (T).
        channels: channels a token (C or D).
        k: tokens chosen a frame.
        dtype: of the tokens, ``float32`` or ``bfloat16``.
        default: whether it is timed without ``--full``.
    """

    op: str
    model: str
    frames: int
    tokens: int
    channels: int
    k: int
    dtype: str
    default: bool = False

    def __str__(self) -> str:
        return f"{self.op}-{self.model}-F{self.frames}-{self.dtype}"


@dataclass(frozen=True)
class Inputs:
    """A case's tensors.

    Attributes:
        ours: arguments of the op and of its definition.
        eager: arguments of the composition in `benchmarks.eager`.
        read: what the op reads, but for indices; "one read" sums these.
        bytes: the fewest bytes that the op can read and write in all.
    """

    ours: tuple[Any, ...]
    eager: tuple[Any, ...]
    read: tuple[Tensor, ...]
    bytes: int


def all_cases() -> list[Case]:
    """Return every op × shape × frames × dtype; those that have targets are the default ones."""
    cases = []
    for dtype in DTYPES:
        for frames in FRAMES:
            for op in _CACHER_OPS:
                for model, tower in TOWERS.items():
                    size = (tower.tokens, tower.width, share_of(tower.tokens, UPDATE_RATIO))
                    default = model == DEFAULT_TOWER and _is_default(op, frames)
                    cases.append(Case(op, model, frames, *size, dtype, default))
            for op in _PRUNER_OPS:
                for model, width in LLM_WIDTHS.items():
                    size = (PRUNER_TOKENS, width, PRUNER_KEPT)
                    default = width == max(LLM_WIDTHS.values()) and _is_default(op, frames)
                    cases.append(Case(op, model, frames, *size, dtype, default))
    return sorted(cases, key=lambda case: (OPS.index(case.op), case.model, case.dtype))


def make_inputs(case: Case, device: str = "cpu", seed: int = 0) -> Inputs:
    """Return the tensors of a case, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    make = _Maker(case, device, generator)
    inputs: Inputs = getattr(make, case.op)()
    return inputs


def make_check(case: Case, inputs: Inputs, *, exact: bool = True) -> Check:
    """Return what raises AssertionError unless a side's result is the op's answer.

    Choices are judged by the definition's own scores: where those tell two tokens apart by less
    than float32 sums in another order may differ, either token is right. A side that is not
    `exact` scores in the precision of the tokens, and may differ by that.
    """
    maker = {
        "select_dynamic": _check_select,
        "quiet_channels": _check_quiet,
        "topk_gather": _check_topk,
        "prune_tokens": _check_prune,
    }.get(case.op, _check_close)
    return maker(case, inputs, exact or case.dtype == "float32")


# Those that performance.md sets a target for; of the others one size is enough to see a regression.
_OPS_WITH_TARGETS = (
    "select_dynamic",
    "gather_tokens",
    "merge_tokens",
    "topk_gather",
    "prune_tokens",
)


def _is_default(op: str, frames: int) -> bool:
    return op in _OPS_WITH_TARGETS or frames == 16


# Two or three roundings to bfloat16 of a number near 1.
_ROUNDED = 1.6e-2


class _Maker:
    """Makes the inputs of one case; a method an op."""

    def __init__(self, case: Case, device: str, generator: torch.Generator) -> None:
        self._case = case
        self._device = device
        self._generator = generator
        self._dtype: torch.dtype = getattr(torch, case.dtype)
        self._token = case.channels * self._dtype.itemsize
        self._all = case.frames * case.tokens
        self._chosen = case.frames * case.k

    def patch_similarity(self) -> Inputs:
        pair = self._pair()
        return Inputs(pair, pair, pair, 2 * self._all * self._token + 4 * self._all)

    def select_dynamic(self) -> Inputs:
        pair = self._pair()
        size = 2 * self._all * self._token + 8 * self._chosen + 4 * self._all
        return Inputs((*pair, self._case.k), (*pair, self._case.k), pair, size)

    def gather_tokens(self) -> Inputs:
        tokens, index = self._tokens(), self._index()
        size = 2 * self._chosen * self._token + 8 * self._chosen
        return Inputs((tokens, index), (tokens, index), (tokens,), size)

    def merge_tokens(self) -> Inputs:
        updated, index = self._tokens(self._case.k), self._index()
        cached, residual = self._tokens(), self._tokens()
        size = self._merged_bytes()
        ours = (updated, cached, self._slot(index), None, residual)
        eager = (updated, cached, index, residual)
        return Inputs(ours, eager, (updated, cached, residual), size)

    def merge_tokens_norm(self) -> Inputs:
        updated, index = self._tokens(self._case.k), self._index()
        cached, residual = self._tokens(), self._tokens()
        weight, bias = self._normal(self._case.channels), self._normal(self._case.channels)
        size = self._merged_bytes() + (self._all + 2) * self._token
        ours = (updated, cached, self._slot(index), weight, bias, None, residual)
        eager = (updated, cached, index, residual, weight, bias)
        return Inputs(ours, eager, (updated, cached, residual), size)

    def layer_norm_gather(self) -> Inputs:
        tokens, index = self._tokens(), self._index()
        added = self._tokens(self._case.k)
        weight, bias = self._normal(self._case.channels), self._normal(self._case.channels)
        size = (4 * self._chosen + 2) * self._token + 8 * self._chosen
        ours = (tokens, index, weight, bias, added)
        eager = (tokens, index, added, weight, bias)
        return Inputs(ours, eager, (tokens, added), size)

    def quiet_channels(self) -> Inputs:
        tokens, keep = self._tokens(), self._case.channels // 2
        # Channels of unlike spread, as real ones are.
        tokens *= torch.linspace(0.5, 2, self._case.channels, device=self._device).to(self._dtype)
        size = self._all * self._token + 8 * keep
        return Inputs((tokens, keep), (tokens, keep), (tokens,), size)

    def anchor_scores(self) -> Inputs:
        tokens, anchor = self._tokens(), self._anchor()
        size = self._all * self._token + anchor.nbytes + 4 * self._all
        return Inputs((tokens, anchor), (tokens, anchor), (tokens,), size)

    def topk_gather(self) -> Inputs:
        tokens = self._tokens()
        scores = self._normal(self._case.frames, self._case.tokens, dtype=torch.float32)
        size = 4 * self._all + 2 * self._chosen * self._token + 8 * self._chosen
        arguments = (tokens, scores, self._case.k)
        return Inputs(arguments, arguments, (tokens,), size)

    def prune_tokens(self) -> Inputs:
        tokens, anchor = self._tokens(), self._anchor()
        size = (self._all + self._chosen) * self._token + anchor.nbytes + 8 * self._chosen
        ours = (tokens, self._case.k, anchor)
        return Inputs(ours, ours, (tokens,), size)

    def _normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(*shape, generator=self._generator)
        return values.to(self._device, dtype or self._dtype)

    def _tokens(self, tokens: int | None = None) -> Tensor:
        return self._normal(self._case.frames, tokens or self._case.tokens, self._case.channels)

    def _pair(self) -> tuple[Tensor, Tensor]:
        reference = self._tokens()
        return reference + 0.3 * self._tokens(), reference

    def _anchor(self) -> Tensor:
        return self._normal(self._case.frames, self._case.channels, dtype=torch.float32)

    def _index(self) -> Tensor:
        order = torch.rand(self._case.frames, self._case.tokens, generator=self._generator)
        return order.argsort(dim=1)[:, : self._case.k].sort(dim=1).values.to(self._device)

    def _slot(self, index: Tensor) -> Tensor:
        slot = torch.full(
            (self._case.frames, self._case.tokens), -1, dtype=torch.int32, device=self._device
        )
        places = torch.arange(self._case.k, dtype=torch.int32, device=self._device)
        return slot.scatter_(1, index, places.expand_as(index))

    def _merged_bytes(self) -> int:
        reused = self._all - self._chosen
        return (self._chosen + 2 * reused + self._all) * self._token + 4 * self._all


def _check_select(case: Case, inputs: Inputs, exact: bool) -> Check:
    current, reference, k = inputs.ours
    worth = -naive("patch_similarity")(current, reference)
    apart = _score_tolerance(case, exact)["atol"]

    def check(result: tuple[Tensor, Tensor]) -> None:
        index, slot = result
        _assert_chosen(index, worth, k, apart)
        expected = torch.full_like(slot, -1)
        places = torch.arange(k, dtype=torch.int32, device=slot.device)
        expected.scatter_(1, index, places.expand_as(index))
        assert torch.equal(slot, expected), "slot does not say where the tokens are in index"

    return check


def _check_topk(case: Case, inputs: Inputs, exact: bool) -> Check:
    tokens, scores, k = inputs.ours

    def check(result: tuple[Tensor, Tensor]) -> None:
        _assert_kept(tokens, *result)
        _assert_chosen(result[1], scores, k, 0.0)

    return check


def _check_prune(case: Case, inputs: Inputs, exact: bool) -> Check:
    tokens, k, anchor = inputs.ours
    scores = naive("anchor_scores")(tokens, anchor)
    apart = _score_tolerance(case, exact)["atol"]

    def check(result: tuple[Tensor, Tensor]) -> None:
        _assert_kept(tokens, *result)
        _assert_chosen(result[1], scores, k, apart)

    return check


def _check_quiet(case: Case, inputs: Inputs, exact: bool) -> Check:
    tokens, keep = inputs.ours
    variance = tokens.flatten(0, 1).double().var(0, correction=0)
    expected = variance.sort().values[:keep]
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if exact else {"rtol": _ROUNDED, "atol": _ROUNDED}

    def check(result: Tensor) -> None:
        assert result.shape == (keep,) and result.unique().numel() == keep
        torch.testing.assert_close(variance[result], expected, **tolerance)

    return check


def _check_close(case: Case, inputs: Inputs, exact: bool) -> Check:
    expected = naive(case.op)(*inputs.ours)
    if case.op in ("patch_similarity", "anchor_scores"):
        tolerance = _score_tolerance(case, exact)
    else:
        tolerance = {"rtol": _ROUNDED, "atol": _ROUNDED} if case.dtype == "bfloat16" else {}
    return lambda result: torch.testing.assert_close(
        result, expected, **tolerance, check_dtype=exact
    )


def _score_tolerance(case: Case, exact: bool) -> dict[str, float]:
    return score_tolerance(case.channels) if exact else {"rtol": _ROUNDED, "atol": _ROUNDED}


def _assert_kept(tokens: Tensor, kept: Tensor, index: Tensor) -> None:
    assert torch.equal(kept, naive("gather_tokens")(tokens, index)), "kept is not what index names"


def _assert_chosen(index: Tensor, worth: Tensor, k: int, tolerance: float) -> None:
    assert index.shape == (worth.shape[0], k) and index.dtype == torch.int64
    assert bool((index.diff(dim=1) > 0).all()), "index is not ascending"
    chosen = torch.zeros_like(worth, dtype=torch.bool).scatter_(1, index, True)
    if k == worth.shape[1]:
        return
    least = worth.masked_fill(~chosen, torch.inf).amin(1)
    left = worth.masked_fill(chosen, -torch.inf).amax(1)
    assert bool((least >= left - 2 * tolerance).all()), "not the tokens that score best"
