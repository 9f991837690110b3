"""Results lie in memory as a new tensor does, whatever the arguments: op, definition and fake."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from stc_kernels import _shapes
from stc_kernels.testing import naive, random_tokens

LAYOUTS = ("contiguous", "sliced", "transposed", "reversed_frames", "expanded")
Call = tuple[str, tuple[Any, ...]]


def odd(tensor: Tensor) -> Tensor:
    """Return the same values in memory the other way round."""
    return tensor.movedim(0, -1).contiguous().movedim(-1, 0)


def calls(
    shape: tuple[int, int, int], layouts: tuple[str, str], g: torch.Generator
) -> Iterator[Call]:
    """Yield every op with and without its optional arguments, on arguments of two layouts."""
    frames, tokens, channels = shape

    def random(count: int, length: int, which: int) -> Tensor:
        return random_tokens(count, length, channels, generator=g, layout=layouts[which])

    x, y, references = random(frames, tokens, 0), random(frames, tokens, 1), random(2, tokens, 1)
    held, scale = torch.arange(frames) % 2, torch.randn(channels, generator=g)
    most = max(1, tokens // 2)
    for k in (0, most):
        updated = random(frames, most, 0)[:, :k]
        index = torch.rand(frames, tokens, generator=g).argsort(1)[:, :k]
        slot = torch.full((frames, tokens), -1, dtype=torch.int32)
        slot.scatter_(1, index, torch.arange(k, dtype=torch.int32).expand(frames, k))
        for cached, at in ((y, None), (references, held)):
            for residual in (None, x):
                merged = (updated, cached, odd(slot))
                yield "merge_tokens", (*merged, at, residual)
                yield "merge_tokens_norm", (*merged, scale, None, at, residual)
        yield "gather_tokens", (x, odd(index))
        for added in (None, updated):
            yield "layer_norm_gather", (x, odd(index), scale, scale, added)
    for metric in ("cosine", "dot", "l1", "l2"):
        yield "patch_similarity", (x, y, None, metric)
        yield "select_dynamic", (x, references, most, held, metric)
    yield "quiet_channels", (x, channels)
    scores = torch.randn(frames, tokens, generator=g)
    for values, largest in itertools.product((scores, odd(scores)), (True, False)):
        yield "topk_gather", (x, values, most, largest)
    for strategy, past in itertools.product(("dual_anchor", "gaussian"), (None, y[:, 0])):
        yield "anchor_scores", (x, past, strategy)
        yield "prune_tokens", (x, most, past, strategy)


def strides(result: Tensor | tuple[Tensor, ...]) -> list[tuple[int, ...]]:
    return [r.stride() for r in ((result,) if isinstance(result, Tensor) else result)]


@pytest.mark.parametrize(
    "shape", [(3, 10, 16), (1, 10, 16), (3, 1, 16), (3, 10, 1), (0, 4, 5)], ids=str
)
def test_every_layout_gives_new_strides(shape, generator):
    for layouts in itertools.product(LAYOUTS, LAYOUTS):
        for op, args in calls(shape, layouts, generator):
            expected = strides(
                getattr(_shapes, op)(*(a.to("meta") if isinstance(a, Tensor) else a for a in args))
            )
            said = naive(op)(*args)
            assert strides(said) == expected, (op, layouts)
            assert strides(getattr(torch.ops.stc_kernels, op)(*args)) == expected, (op, layouts)
            given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
            for result in (said,) if isinstance(said, Tensor) else said:
                own = result.untyped_storage().data_ptr()
                assert result.numel() == 0 or own not in given, f"{op} returns its argument"
