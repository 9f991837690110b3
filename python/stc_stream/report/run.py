"""A finished (or interrupted) comparison, as the table, the page and the document are given it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from stc_stream.cacher import CacherConfig
from stc_stream.cacher.change import moving_camera
from stc_stream.evaluate.fidelity import Fidelity
from stc_stream.evaluate.method import Method
from stc_stream.evaluate.summary import FrameNumbers, Summary, summarise
from stc_stream.pruner import PrunerConfig
from stc_stream.report.terminal import printable
from stc_stream.towers.load import VisionModel


@dataclass(frozen=True)
class StreamRun:
    """One run of `StreamComparison` over a source.

    Attributes:
        source: what to call the source.
        tower: the tower it ran on.
        method: what it was held against, with its settings.
        frames: numbers of each frame, in order; at least one.
        warnings: what was wrong with the source, one line each.
        complete: False when it was interrupted.
        fps: the sampling asked for, frames a second.
        fidelity: how close layers stayed to dense, by frames since the refresh.
        closeness: the tower on which closeness to dense was taken; None: `tower`.
    """

    source: str
    tower: VisionModel
    method: Method
    frames: tuple[FrameNumbers, ...]
    warnings: tuple[str, ...] = ()
    complete: bool = True
    fps: float | None = None
    fidelity: Fidelity | None = None
    closeness: VisionModel | None = None

    @cached_property
    def summary(self) -> Summary:
        """The numbers over all frames."""
        return summarise(self.frames, self.tower.tokens)

    @property
    def title(self) -> str:
        """What to call the method in a sentence."""
        return "STC" if self.cacher is not None else printable(self.method.name)

    @property
    def cacher(self) -> CacherConfig | None:
        """The Cacher's settings; None: the method is another one."""
        return self.method.tower if isinstance(self.method.tower, CacherConfig) else None

    @property
    def pruner(self) -> PrunerConfig | None:
        """The Pruner's settings; None: all tokens are kept."""
        return self.method.pruner

    @property
    def moving_camera(self) -> str | None:
        """Say that the camera moves, so that there is little to save; None: it doesn't."""
        whole = [number for number, frame in enumerate(self.frames) if frame.refreshed]
        changes = sum(number % self.method.refresh_interval > 0 for number in whole)
        return moving_camera(len(self.frames), len(whole), changes)
