"""Several methods over a clip: how close each stays to dense, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from stc_stream.evaluate.frames import ComparedFrame, FrameComparison, FrameRun
from stc_stream.evaluate.method import Method
from stc_stream.evaluate.timing import median_ratio
from stc_stream.towers.load import VisionModel

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class ClipRun:
    """What a method did with each frame of a clip.

    Attributes:
        cosines: of the frame's features to the dense ones, mean over its patches.
        whole: whether the frame was computed whole.
        shares: the share of its tokens that were computed, mean over the layers.
        seconds: how long the tower took.
        dense_seconds: how long the dense tower took on the same frame.
    """

    cosines: tuple[float, ...]
    whole: tuple[bool, ...]
    shares: tuple[float, ...]
    seconds: tuple[float, ...]
    dense_seconds: tuple[float, ...]

    @classmethod
    def of(cls, frames: Sequence[_Frame]) -> ClipRun:
        """Return the run of these frames."""
        cosines, whole, shares, seconds, dense_seconds = zip(*frames, strict=True)
        return cls(cosines, whole, shares, seconds, dense_seconds)

    def time_ratio(self, whole: bool) -> float | None:
        """Return the time over dense, median of the frames' own ratios.

        Args:
            whole: of the frames that were computed whole, or of all others.

        Returns:
            The ratio; None where there was no such frame.
        """
        frames = [number for number, own in enumerate(self.whole) if own is whole]
        if not frames:
            return None
        times, dense = self.seconds, self.dense_seconds
        return median_ratio([times[each] for each in frames], [dense[each] for each in frames])


def run_clip(
    model: VisionModel,
    methods: Sequence[Method],
    frames: Iterable[Inputs],
    see: Callable[[ComparedFrame], object] = lambda frame: None,
) -> tuple[ClipRun, ...]:
    """Run every frame of a clip dense and by each method, in turns, after a warm-up.

    Args:
        model: the tower; its module stays as it is.
        methods: what to compare with it.
        frames: inputs of one frame each, as `VisionModel.inputs` gives them; at least one.
        see: given each frame when it has run.

    Returns:
        A run a method, in their order.

    Raises:
        TypeError: a tower that a method can't run.
        ValueError: there are no frames.
    """
    compared: list[list[_Frame]] = []
    with FrameComparison(model, methods) as comparison:
        for inputs in frames:
            if not compared:
                comparison.warm_up(inputs)
            frame = comparison.step(inputs)
            compared.append([_Frame.of(run, frame.dense_seconds) for run in frame.runs])
            see(frame)
    if not compared:
        raise ValueError("frames must hold at least one frame, but is empty")
    return tuple(ClipRun.of(run) for run in zip(*compared, strict=True))


class _Frame(NamedTuple):
    cosine: float
    whole: bool
    share: float
    seconds: float
    dense_seconds: float

    @classmethod
    def of(cls, run: FrameRun, dense_seconds: float) -> _Frame:
        return cls(float(run.cosine.mean()), run.whole, run.share, run.seconds, dense_seconds)
