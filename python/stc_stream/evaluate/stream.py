"""Runs each frame through the tower dense and compressed, and measures both."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stc_stream.cacher import CacherConfig, LayerRecord, attach_cacher
from stc_stream.evaluate.fidelity import Fidelity, FidelityTally, cosines, watch_layers
from stc_stream.evaluate.summary import FrameNumbers, FrameResult, FrameView
from stc_stream.evaluate.timing import WallClock, timed, wait_for
from stc_stream.pruner import PrunerConfig, TokenPruner
from stc_stream.towers.load import VisionModel
from stc_stream.video import Frame

Result = TypeVar("Result")

# A patch whose pixels change by more than this, of 1, moves: twice what sensor noise does.
MOVING = 0.02


class StreamComparison:
    """A tower that sees every frame twice: as it is, and with a Cacher and a Pruner.

    Both ways run in the same process on the same input; which goes first alternates, a warm-up
    comes before the first frame, and reading and resizing pictures is not part of the time.

    Args:
        tower: from `load_tower`; it has a Cacher attached until `close`.
        cacher: None is `CacherConfig()`.
        pruner: None keeps a quarter of a frame's tokens (`PrunerConfig.paper()`).

    Raises:
        ValueError: the Pruner is to keep more tokens than a frame has.
    """

    def __init__(
        self,
        tower: VisionModel,
        cacher: CacherConfig | None = None,
        pruner: PrunerConfig | None = None,
    ) -> None:
        self.tower = tower
        self.cacher_config = cacher or CacherConfig()
        self.pruner_config = pruner or PrunerConfig.paper()
        wanted = self.pruner_config.tokens_per_frame
        if wanted is not None and wanted > tower.tokens:
            raise ValueError(
                f"tokens_per_frame must be at most {tower.tokens}, the tokens of a frame of "
                f"{tower.name}, but is {wanted}"
            )
        self._open = ExitStack()
        self._cacher = self._open.enter_context(attach_cacher(tower.module, self.cacher_config))
        self._layers = self._open.enter_context(watch_layers(self._cacher.tower))
        self._tally = FidelityTally()
        self._clock = WallClock(tower.device)
        self._age = 0
        self._pruner = TokenPruner(self.pruner_config)
        self._cuts = _SceneCuts()
        self._previous: NDArray[np.uint8] | None = None
        self._count = 0

    def __enter__(self) -> StreamComparison:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the tower back as it was."""
        self._open.close()

    @property
    def fidelity(self) -> Fidelity | None:
        """How close the frames so far stayed to dense; None: there were none."""
        return self._tally.result()

    @torch.inference_mode()
    def step(self, frame: Frame) -> FrameResult:
        """Run the next frame of the stream both ways."""
        square = self.tower.square(frame.image)
        pixels = self.tower.pixel_values(square)
        if self._count == 0:
            self._warm_up(pixels)
        # Every phase of the refresh cycle gets both orders.
        dense_first = (self._count + self._count // self.cacher_config.refresh_interval) % 2 == 0
        if dense_first:
            dense, dense_ms = self._timed(lambda: self._dense(pixels))
            dense_layers = self._layers.take()
        with self._cacher.record() as recording:
            compressed, compressed_ms = self._timed(lambda: self._features(pixels))
        compressed_layers = self._layers.take()
        if not dense_first:
            dense, dense_ms = self._timed(lambda: self._dense(pixels))
            dense_layers = self._layers.take()
        pruned, pruner_ms = self._timed(lambda: self._pruner(compressed))
        self._count += 1

        difference = self._difference(square)
        motion = None if difference is None else float(difference.mean())
        refreshed = bool(recording.layers[0].refreshed[0])
        self._age = 0 if refreshed else self._age + 1
        # A picture shows patches; a class token before them is recomputed on every frame.
        first = self.tower.prefix_tokens
        recomputed = _layer_mean(recording.layers, lambda x: x.recomputed[0, first:].float())
        similarity = (
            None
            if refreshed
            else _layer_mean(recording.layers, lambda x: x.similarity()[0, first:])
        )
        cosine = F.cosine_similarity(dense[0].float(), compressed[0].float(), dim=-1)
        layers = (
            [self.tower.patches_of(tokens) for tokens in each]
            for each in (compressed_layers, dense_layers)
        )
        self._tally.add(self._age, cosines(*layers), float(cosine.mean()))
        numbers = FrameNumbers(
            index=frame.index,
            time=frame.time,
            refreshed=refreshed,
            age=self._age,
            scene_cut=motion is not None and self._cuts.cut(motion),
            motion=motion,
            moving=None if difference is None else float((difference > MOVING).mean()),
            dense_ms=dense_ms,
            compressed_ms=compressed_ms,
            pruner_ms=pruner_ms,
            tokens_recomputed=float(recomputed.sum()),
            tokens_kept=len(pruned.index[0]),
            similarity=None if similarity is None else _finite(float(similarity.mean())),
            cosine=_finite(cosine.mean().item()),
            cosine_min=_finite(cosine.min().item()),
        )
        grid = self.tower.grid
        kept = np.zeros(self.tower.tokens, np.bool_)
        kept[pruned.index[0].cpu().numpy()] = True
        view = FrameView(
            image=frame.image,
            grid=grid,
            recomputed=recomputed.reshape(grid),
            kept=kept.reshape(grid),
            similarity=None if similarity is None else similarity.reshape(grid),
        )
        return FrameResult(numbers, view)

    def _features(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.tower.module(**self.tower.inputs(pixels)).last_hidden_state
        return self.tower.patches_of(tokens)

    def _dense(self, pixels: Tensor) -> Tensor:
        with self._cacher.paused():
            return self._features(pixels)

    def _timed(self, run: Callable[[], Result]) -> tuple[Result, float]:
        result, seconds = timed(run, self._clock)
        return result, 1e3 * seconds

    def _warm_up(self, pixels: Tensor) -> None:
        for _ in range(2):
            self._dense(pixels)
            self._pruner(self._features(pixels))
        self._cacher.reset()
        self._pruner.reset()
        wait_for(self.tower.device)

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
    layers: tuple[LayerRecord, ...], read: Callable[[LayerRecord], Tensor]
) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = torch.stack([read(layer) for layer in layers]).mean(0).cpu().numpy()
    return mean


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
