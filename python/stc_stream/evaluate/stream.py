"""Runs each frame of a video dense and by a method, and measures both."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stc_stream.cacher import LayerRecord
from stc_stream.evaluate.fidelity import Fidelity
from stc_stream.evaluate.frames import FrameComparison, FrameRun
from stc_stream.evaluate.method import Method
from stc_stream.evaluate.methods import read_method
from stc_stream.evaluate.opened import Opened
from stc_stream.evaluate.summary import FrameNumbers, FrameResult, FrameView
from stc_stream.evaluate.timing import WallClock, timed
from stc_stream.pruner import TokenPruner
from stc_stream.towers.load import VisionModel
from stc_stream.video import Frame

# A patch whose pixels change by more than this, of 1, moves: twice what sensor noise does.
MOVING = 0.02


class StreamComparison(Opened):
    """A model that sees every frame of a video twice: as it is, and by a method.

    Both ways run in the same process on the same input; which goes first alternates, a warm-up
    comes before the first frame, and reading and resizing pictures is not part of the time.

    Args:
        tower: from `load_tower`; it stays as it is, the method runs on a copy with its weights.
        method: None is STC with its defaults.
        closeness: another tower, on which closeness is taken: a trained one, where the weights of
            `tower` are random; it isn't timed. None: closeness is taken on `tower`.

    Raises:
        ValueError: the Pruner is to keep more tokens than a frame has.
        TypeError: a tower that the method can't run.
    """

    def __init__(
        self,
        tower: VisionModel,
        method: Method | None = None,
        closeness: VisionModel | None = None,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.closeness = closeness
        self.method = read_method("stc") if method is None else method
        pruner = self.method.pruner
        wanted = None if pruner is None else pruner.tokens_per_frame
        if wanted is not None and wanted > tower.tokens:
            raise ValueError(
                f"tokens_per_frame must be at most {tower.tokens}, the tokens of a frame of "
                f"{tower.name}, but is {wanted}"
            )
        with ExitStack() as stack:
            on_tower = FrameComparison(tower, [self.method], layers=closeness is None)
            self._frames = stack.enter_context(on_tower)
            self._close_frames = self._frames
            if closeness is not None:
                on_other = FrameComparison(closeness, [self.method], layers=True)
                self._close_frames = stack.enter_context(on_other)
            self._open = stack.pop_all()
        self._clock = WallClock(tower.device)
        self._pruner = None if pruner is None else TokenPruner(pruner)
        self._cuts = _SceneCuts()
        self._previous: NDArray[np.uint8] | None = None
        self._begun = False

    @property
    def fidelity(self) -> Fidelity | None:
        """How close the frames so far stayed to dense; None: there were none."""
        return self._close_frames.fidelity[0]

    @torch.inference_mode()
    def step(self, frame: Frame) -> FrameResult:
        """Run the next frame of the stream both ways."""
        square = self.tower.square(frame.image)
        inputs = self.tower.inputs(self.tower.pixel_values(square))
        if not self._begun:
            self._warm_up(inputs)
        compared = self._frames.step(inputs)
        (run,) = compared.runs
        cosine = run.cosine
        if self.closeness is not None:
            cosine = self._close_frames.step(self.closeness.batch([frame.image])).runs[0].cosine
        (kept, pruner_seconds) = timed(lambda: self._keep(run.features), self._clock)
        difference = self._difference(square)
        motion = None if difference is None else float(difference.mean())
        recomputed, similarity = self._by_patch(run)
        numbers = FrameNumbers(
            index=frame.index,
            time=frame.time,
            refreshed=run.whole,
            age=run.age,
            scene_cut=motion is not None and self._cuts.cut(motion),
            motion=motion,
            moving=None if difference is None else float((difference > MOVING).mean()),
            dense_ms=1e3 * compared.dense_seconds,
            compressed_ms=1e3 * run.seconds,
            pruner_ms=1e3 * pruner_seconds,
            tokens_recomputed=float(recomputed.sum()),
            tokens_kept=len(kept),
            similarity=None if similarity is None else _finite(float(similarity.mean())),
            cosine=_finite(cosine.mean().item()),
            cosine_min=_finite(cosine.min().item()),
        )
        grid = self.tower.grid
        outlined = np.zeros(self.tower.tokens, np.bool_)
        outlined[kept.cpu().numpy()] = True
        view = FrameView(
            image=frame.image,
            grid=grid,
            recomputed=recomputed.reshape(grid),
            kept=outlined.reshape(grid),
            similarity=None if similarity is None else similarity.reshape(grid),
        )
        return FrameResult(numbers, view)

    def _keep(self, features: Tensor) -> Tensor:
        """Return the tokens of a frame, [1, T, C], that the Pruner keeps, int64 [k]."""
        if self._pruner is None:
            return torch.arange(features.shape[1])
        return self._pruner(features).index[0]

    def _by_patch(self, run: FrameRun) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the share of layers that recomputed each patch, and its similarity or None."""
        layers = run.record.layers
        if not layers:
            return np.full(self.tower.tokens, run.share, np.float32), None
        # A picture shows patches; a class token before them is recomputed on every frame.
        first = self.tower.prefix_tokens
        recomputed = _layer_mean(layers, lambda x: x.recomputed[0, first:].float())
        if run.whole:
            return recomputed, None
        return recomputed, _layer_mean(layers, lambda x: x.similarity()[0, first:])

    def _warm_up(self, inputs: dict[str, Tensor]) -> None:
        self._frames.warm_up(inputs, self._keep)
        if self._pruner is not None:
            self._pruner.reset()
        self._begun = True

    def _difference(self, square: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        previous, self._previous = self._previous, square
        if previous is None:
            return None
        (rows, columns), patch = self.tower.grid, self.tower.patch
        change = np.abs(square.astype(np.int16) - previous)[: rows * patch, : columns * patch]
        mean: NDArray[np.float64] = change.reshape(rows, patch, columns, patch, 3).mean((1, 3, 4))
        return mean / 255


class _SceneCuts:
    """Tells a cut from motion: a change that is large, and far larger than those before it."""

    LARGE = 0.08
    TIMES = 3.0

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=12)

    def cut(self, motion: float) -> bool:
        usual = float(np.median(self._recent)) if self._recent else 0.0
        if motion > max(self.LARGE, self.TIMES * usual):
            return True
        self._recent.append(motion)
        return False


def _layer_mean(
    layers: Sequence[LayerRecord], read: Callable[[LayerRecord], Tensor]
) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = torch.stack([read(layer) for layer in layers]).mean(0).cpu().numpy()
    return mean


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
