"""What an evaluation compares with dense: a name, and the parts that a method has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stc_stream.cacher.part import TowerPart
from stc_stream.pruner import PrunerConfig

if TYPE_CHECKING:
    from stc_stream.pruner import PruningStrategy
    from stc_stream.session.memory import Memory


DEFAULT_SHARE = 0.25
"""What methods keep of a frame that have a budget and don't say it: the paper's."""


def pruner_by(strategy: PruningStrategy, tokens_per_frame: int | None) -> PrunerConfig:
    """Return settings that keep so many tokens of a frame by a rule; None: the default share."""
    if tokens_per_frame is None:
        return PrunerConfig(strategy=strategy, keep_ratio=DEFAULT_SHARE)
    return PrunerConfig(strategy=strategy, tokens_per_frame=tokens_per_frame)


@dataclass(frozen=True)
class Method:
    """A way to run a video model; with a name alone it is dense.

    Its parts are those that a `StreamingSession` takes. Where a tower is run without a language
    model, what is remembered by one has no effect.

    Attributes:
        name: what to call it.
        tower: what runs the tower; None: the tower itself.
        pruner: what chooses the tokens that the language model gets; None: all.
        memory: what the language model remembers; None: everything.

    Raises:
        TypeError: a part of another kind.
    """

    name: str
    tower: TowerPart | None = None
    pruner: PrunerConfig | None = None
    memory: Memory | None = None

    def __post_init__(self) -> None:
        if self.tower is not None and not callable(getattr(self.tower, "attach", None)):
            raise TypeError(f"tower must have a method attach(tower), but {self.tower!r} has none")
        if self.pruner is not None and not isinstance(self.pruner, PrunerConfig):
            raise TypeError(f"pruner must be a PrunerConfig, but is a {type(self.pruner).__name__}")
        if self.memory is not None and not callable(getattr(self.memory, "open", None)):
            raise TypeError(f"memory must have a method open(config), but {self.memory!r} has none")

    @property
    def refresh_interval(self) -> int:
        """Frames of a stream after which what is computed repeats; 1: all frames are alike."""
        interval: Any = getattr(self.tower, "refresh_interval", 1)
        return int(interval)

    def with_share(self, share: float) -> Method:
        """Return the method with another share of a frame's tokens, if it keeps the default one."""
        if self.pruner is None or self.pruner.keep_ratio != DEFAULT_SHARE:
            return self
        return replace(self, pruner=replace(self.pruner, keep_ratio=share))
