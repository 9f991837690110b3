"""How much a selective frame recomputes, how often a frame is computed whole, what is held."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import nn

from stc_stream.cacher.policy import RefreshPolicy
from stc_stream.cacher.selection import TokenSelection
from stc_stream.ratios import share_of

if TYPE_CHECKING:
    from stc_stream.cacher.cacher import Cacher

Metric = Literal["cosine", "dot", "l1", "l2"]
ReferenceKeys = Literal["full", "int8"]
BUDGET_STEPS = 16
"""Into how many steps the tokens of a frame are divided when `threshold` chooses how many."""
REFRESH_WINDOW = 16
"""Over how many frames of a stream `max_refresh_ratio` holds."""


@dataclass(frozen=True)
class CacherConfig:
    """Settings of a Cacher, checked when made (arXiv 2512.00891, STC-Cacher).

    Attributes:
        update_ratio: share of a selective frame's tokens that is recomputed, in (0, 1]; with
            `threshold`, the largest share.
        refresh_interval: every N frames of a stream one is computed whole and becomes the
            reference of those after it; at least 1, which computes every frame whole.
        metric: how a token's key is compared with the reference's: "cosine", "dot",
            "l1" (negative sum of absolute differences) or "l2" (negative distance).
        threshold: recompute the tokens whose similarity is below this, frame by frame and layer
            by layer: as many as there are, rounded up to a sixteenth of the frame, at most
            `update_ratio`. None: always `update_ratio`. Costs a wait for the device a layer.
        selection: chooses the tokens that are recomputed, `update_ratio` of them, in place of
            `metric`. None: those least similar to their reference.
        refresh_on_change: a frame of whose patches more than this share, in (0, 1], changed since
            its reference is computed whole at once, as after a scene cut. None: never. Where the
            pixels can't be seen (the layers are called without the tower's patch embedding),
            frames follow the rest of the settings, and a warning says so once.
        max_refresh_ratio: of any 16 consecutive frames of a stream, compute at most this share
            whole, in (0, 1]: the refreshes of `refresh_interval` come first and are never
            forbidden, changes (or a `policy`) get what is left. A frame without a reference is
            computed whole all the same, and does not count. None: as many as are asked for.
        stagger: let streams refresh in turn: a stream's second refresh comes early, so that not
            all refresh in the same batch; after it, every `refresh_interval` frames.
        policy: decides which frames are computed whole, in place of `refresh_interval`.
        max_streams: know at most this many streams; the one not seen for longest is forgotten for
            another. None: all.
        max_bytes: hold at most this many bytes of references, likewise.
        reference_keys: "full" holds reference keys as they are; "int8" in 8 bits with a scale a
            token. They only rank the tokens.
        cuda_graph: capture whole batches in CUDA graphs and replay them, where that is possible.
        self_check: when a layer first runs with the Cacher, compute its own forward besides on one
            frame and compare, so that a tower that is not what it seems is refused. Costs one dense
            frame, once.

    Raises:
        ValueError: a value out of range, or settings that exclude each other. TypeError: a value
            of another type.
    """

    update_ratio: float = 0.25
    refresh_interval: int = 4
    metric: Metric = "cosine"
    threshold: float | None = None
    selection: TokenSelection | None = None
    refresh_on_change: float | None = 0.5
    max_refresh_ratio: float | None = None
    stagger: bool = False
    policy: RefreshPolicy | None = None
    max_streams: int | None = None
    max_bytes: int | None = None
    reference_keys: ReferenceKeys = "full"
    cuda_graph: bool = False
    self_check: bool = True

    @classmethod
    def paper(
        cls, update_ratio: float = 0.25, refresh_interval: int = 4, **settings: Any
    ) -> CacherConfig:
        """Return the plain schedule of the paper: every N frames of a stream one is computed whole.

        Args:
            update_ratio, refresh_interval: as above.
            settings: any other field but `refresh_on_change`, which is None.
        """
        return cls(update_ratio, refresh_interval, refresh_on_change=None, **settings)

    def attach(self, tower: nn.Module) -> Cacher:
        """Return `attach_cacher(tower, self)`, which detaches when its context is left."""
        from stc_stream.cacher.cacher import attach_cacher

        return attach_cacher(tower, self)

    def __post_init__(self) -> None:
        _check_share("update_ratio", self.update_ratio)
        _check_count("refresh_interval", self.refresh_interval)
        _check_choice("metric", self.metric, get_args(Metric))
        if self.threshold is not None:
            _check_number("threshold", self.threshold)
            if not math.isfinite(self.threshold):
                raise ValueError(f"threshold must be finite, but is {self.threshold}")
        if self.refresh_on_change is not None:
            _check_share("refresh_on_change", self.refresh_on_change)
        self._check_most()
        for name in ("max_streams", "max_bytes"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        _check_choice("reference_keys", self.reference_keys, get_args(ReferenceKeys))
        for name in ("stagger", "cuda_graph", "self_check"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, but is {getattr(self, name)!r}")
        self._check_policy()
        self._check_selection()
        if self.cuda_graph and self.threshold is not None:
            raise ValueError(
                "cuda_graph needs a fixed number of tokens a frame: leave threshold None"
            )

    @property
    def allowed_refreshes(self) -> int | None:
        """How many of 16 frames a change or a policy may have computed whole; None: all."""
        if self.max_refresh_ratio is None:
            return None
        scheduled = 0 if self.policy is not None else -(-REFRESH_WINDOW // self.refresh_interval)
        return math.floor(REFRESH_WINDOW * self.max_refresh_ratio) - scheduled

    def _check_most(self) -> None:
        if self.max_refresh_ratio is None:
            return
        _check_share("max_refresh_ratio", self.max_refresh_ratio)
        allowed = self.allowed_refreshes
        if allowed is not None and allowed < 0:
            least = -(-REFRESH_WINDOW // self.refresh_interval) / REFRESH_WINDOW
            raise ValueError(
                f"max_refresh_ratio must be at least {least:g}, the share that refresh_interval = "
                f"{self.refresh_interval} takes of 16 frames, but is {self.max_refresh_ratio}"
            )

    def _check_policy(self) -> None:
        if self.policy is None:
            return
        if not callable(getattr(self.policy, "refreshes", None)):
            raise TypeError(
                f"policy must have a method refreshes(frame), but {self.policy!r} has none"
            )
        if self.stagger:
            raise ValueError("stagger is for refresh_interval: a policy staggers streams itself")

    def _check_selection(self) -> None:
        if self.selection is None:
            return
        if not callable(getattr(self.selection, "choose", None)):
            raise TypeError(
                "selection must have a method choose(current, reference, k), but "
                f"{self.selection!r} has none"
            )
        if self.threshold is not None:
            raise ValueError(
                "threshold chooses tokens itself, by their similarity: leave selection or "
                "threshold None"
            )
        if self.cuda_graph:
            raise ValueError(
                "cuda_graph would repeat what selection chose when the graph was captured: leave "
                "selection None"
            )

    def updated_tokens(self, tokens: int) -> int:
        """Return k, the tokens of a frame of `tokens` that a selective frame recomputes.

        k = max(1, floor(tokens · update_ratio)), the ratio being the decimal that was written.
        """
        return share_of(tokens, self.update_ratio)

    def budget_step(self, tokens: int) -> int:
        """Return what the number of recomputed tokens is a multiple of under `threshold`."""
        return math.ceil(tokens / BUDGET_STEPS)


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, but is {value!r}")


def _check_share(name: str, value: float) -> None:
    _check_number(name, value)
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be in (0, 1], but is {value}")


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, but is {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, but is {value}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, but is {value!r}")
