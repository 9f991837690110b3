"""What a comparison measures, frame by frame and over all frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stc_stream.evaluate.timing import Timing


@dataclass(frozen=True)
class FrameNumbers:
    """The numbers of one frame.

    Attributes:
        index: place in the source, from 0.
        time: seconds from the source's first frame.
        refreshed: the compressed tower ran it whole.
        age: frames since the reference it was held against; 0 when refreshed.
        scene_cut: the picture changed altogether since the frame before.
        motion: mean absolute difference of its pixels to the frame before, 0 to 1; None at first.
        moving: share of the patches that changed since the frame before; None at first.
        dense_ms: milliseconds the tower took without the Cacher.
        compressed_ms: milliseconds it took with the Cacher.
        pruner_ms: milliseconds the Pruner took.
        tokens_recomputed: tokens that the Cacher recomputed, mean over the layers.
        tokens_kept: tokens that the Pruner kept.
        similarity: mean over tokens and layers of the keys' similarity to the reference's; None on
            a refresh frame.
        cosine: mean over tokens of the cosine of the compressed features to the dense ones; None
            where it is not a number.
        cosine_min: the lowest of these; None likewise.
    """

    index: int
    time: float
    refreshed: bool
    age: int
    scene_cut: bool
    motion: float | None
    moving: float | None
    dense_ms: float
    compressed_ms: float
    pruner_ms: float
    tokens_recomputed: float
    tokens_kept: int
    similarity: float | None
    cosine: float | None
    cosine_min: float | None


@dataclass(frozen=True, eq=False)
class FrameView:
    """What can be drawn of one frame; its tokens are patches, row by row.

    Attributes:
        image: uint8 [H, W, 3], as it came.
        grid: rows and columns of patches.
        recomputed: float32 [rows, columns], the share of the layers that recomputed each patch.
        kept: bool [rows, columns], the patches that the Pruner kept.
        similarity: float32 [rows, columns], mean over the layers; None on a refresh frame.
    """

    image: NDArray[np.uint8]
    grid: tuple[int, int]
    recomputed: NDArray[np.float32]
    kept: NDArray[np.bool_]
    similarity: NDArray[np.float32] | None


@dataclass(frozen=True)
class FrameResult:
    """One frame, run both ways."""

    numbers: FrameNumbers
    view: FrameView


@dataclass(frozen=True)
class Summary:
    """The numbers of a whole stream.

    Attributes:
        frames: frames run.
        refreshes: those that the compressed tower ran whole.
        scene_cuts: indices of the frames just after a cut.
        tokens: tokens of a frame.
        dense: milliseconds a frame of the tower without the Cacher.
        compressed: with it, refresh frames included.
        selective: with it, on frames that are no refresh; None where there was none.
        pruner: milliseconds a frame of the Pruner.
        reduction: the share of the tower's total time that compression saved, refresh frames
            included: 1 − Σ compressed / Σ dense; negative when it lost.
        tokens_recomputed: mean a frame.
        tokens_kept: a frame, the nearest whole number to the mean.
        cosine: mean over frames of their cosine; None where there is none.
        cosine_selective: the same over selective frames.
        cosine_lowest_frame: the lowest of the frames' cosines.
        cosine_lowest_token: the lowest cosine of any token.
    """

    frames: int
    refreshes: int
    scene_cuts: tuple[int, ...]
    tokens: int
    dense: Timing
    compressed: Timing
    selective: Timing | None
    pruner: Timing
    reduction: float
    tokens_recomputed: float
    tokens_kept: int
    cosine: float | None
    cosine_selective: float | None
    cosine_lowest_frame: float | None
    cosine_lowest_token: float | None


def summarise(frames: Sequence[FrameNumbers], tokens: int) -> Summary:
    """Sum up the frames of a stream whose frames have `tokens` tokens.

    Raises:
        ValueError: there are no frames.
    """
    if not frames:
        raise ValueError("frames must hold at least one frame, but is empty")
    dense = [frame.dense_ms for frame in frames]
    compressed = [frame.compressed_ms for frame in frames]
    selective = [frame for frame in frames if not frame.refreshed]
    cosines = [frame.cosine for frame in frames if frame.cosine is not None]
    lowest = [frame.cosine_min for frame in frames if frame.cosine_min is not None]
    return Summary(
        frames=len(frames),
        refreshes=len(frames) - len(selective),
        scene_cuts=tuple(frame.index for frame in frames if frame.scene_cut),
        tokens=tokens,
        dense=Timing.of(dense),
        compressed=Timing.of(compressed),
        selective=Timing.of([frame.compressed_ms for frame in selective]) if selective else None,
        pruner=Timing.of([frame.pruner_ms for frame in frames]),
        reduction=1 - sum(compressed) / sum(dense),
        tokens_recomputed=float(np.mean([frame.tokens_recomputed for frame in frames])),
        tokens_kept=round(float(np.mean([frame.tokens_kept for frame in frames]))),
        cosine=_mean(cosines),
        cosine_selective=_mean([f.cosine for f in selective if f.cosine is not None]),
        cosine_lowest_frame=min(cosines, default=None),
        cosine_lowest_token=min(lowest, default=None),
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
