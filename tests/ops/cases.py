"""Inputs that every op is tried on, and how a choice of tokens is judged."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from stc_kernels.testing import DTYPES

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
layouts = pytest.mark.parametrize(
    "layout", ["contiguous", "sliced", "transposed", "reversed_frames", "expanded"]
)
metrics = pytest.mark.parametrize("metric", ["cosine", "dot", "l1", "l2"])
strategies = pytest.mark.parametrize("strategy", ["dual_anchor", "gaussian"])
# Frames, tokens, channels: single ones, odd ones, those of real towers, and no frame at all.
shapes = pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (2, 63, 7), (3, 196, 72), (1, 729, 1152), (5, 17, 33), (33, 9, 130), (0, 5, 8)],
    ids=lambda s: "x".join(map(str, s)),
)


def extreme_pasts(
    frames: int, channels: int, generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """Yield temporal anchors whose squares overflow or vanish in float32, or that are garbage."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    yield "one large channel", normal(channels).index_fill_(0, torch.tensor([channels - 1]), 2e19)
    yield "all as large as can be", torch.full((channels,), -torch.finfo(torch.float32).max)
    yield (
        "one frame of each size",
        normal(frames, channels) * 10.0 ** torch.arange(-30, 30, 60 / frames).unsqueeze(1),
    )
    yield "an infinity", normal(channels).index_fill_(0, torch.tensor([0]), -torch.inf)
    yield (
        "an infinity among large",
        torch.full((frames, channels), 1e30).index_fill_(
            1, torch.tensor([channels // 2]), torch.inf
        ),
    )
    yield (
        "one frame not a number",
        normal(frames, channels).index_fill_(0, torch.tensor([0]), torch.nan),
    )


def assert_chosen(
    index: Tensor, scores: Tensor, k: int, *, largest: bool, tolerance: float
) -> None:
    """Assert that `index` is the choice of k by `scores`, known up to `tolerance`.

    Where the scores on both sides of the cut are further apart than twice the tolerance the
    choice must be exact; closer ones may have been told apart either way.
    """
    frames, tokens = scores.shape
    assert index.shape == (frames, k) and index.dtype == torch.int64
    assert ((index >= 0) & (index < tokens)).all()
    assert (index.diff(dim=1) > 0).all(), "the index is not ascending"
    worth = scores if largest else -scores
    for f in range(frames):
        chosen = torch.zeros(tokens, dtype=torch.bool)
        chosen[index[f]] = True
        if k < tokens:
            assert worth[f][chosen].min() >= worth[f][~chosen].max() - 2 * tolerance
