"""The pruner: scores the frames of each stream against its past and keeps the novel tokens."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import stc_kernels
from stc_stream.pruner.config import PrunerConfig
from stc_stream.pruner.layout import select_in_grid
from stc_stream.pruner.selection import check_past, check_tokens, select
from stc_stream.pruner.strategies import Kept
from stc_stream.pruner.strategies.anchored import AnchoredStrategy
from stc_stream.stream_names import DEFAULT_STREAM, check_names


@dataclass(frozen=True, eq=False)
class PrunedTokens:
    """The tokens kept of a call's frames.

    Attributes:
        tokens: [F, k, D], of the input's dtype. In "grid" the newline tokens are among them: k
            patches and one newline token for each row of patches.
        index: int64 [F, k], each kept token's row in its frame: ascending, but for the "released"
            history with "grid", which has a frame's newline rows after its patches.

    Under a strategy of one's own that keeps different numbers of different frames both are lists of
    one tensor a frame, [k_f, D] and [k_f].
    """

    tokens: Kept
    index: Kept


@dataclass(frozen=True)
class _Stream:
    """What is known of a stream: the channels of its tokens, and what the strategy remembers."""

    width: int
    past: Any


class TokenPruner:
    """Keeps the most novel tokens of each frame, with one past a stream.

    Source: arXiv 2512.00891, STC-Pruner.

    Attributes:
        config: the settings.
    """

    def __init__(self, config: PrunerConfig) -> None:
        if not isinstance(config, PrunerConfig):
            raise TypeError(f"config must be a PrunerConfig, but is a {type(config).__name__}")
        self.config = config
        self._strategy = config.make_strategy()
        self._streams: dict[Hashable, _Stream] = {}
        self._named = False

    def __call__(self, tokens: Tensor, stream: Hashable = None) -> PrunedTokens:
        """Keep k tokens of each frame and add the frames to the stream's past.

        Args:
            tokens: [F, T, D], consecutive frames of one stream; float32, float16 or bfloat16, any
                strides. F may be 0: the strategy is not asked then. In "grid", T is s · (s + 1).
            stream: whose frames these are, a hashable name that compares by value; None: the
                default stream, whose name is "default", of a pruner that is told no names.

        Returns:
            The kept tokens and their rows. Frames given at once or one by one give the same with
            `PrunerConfig.paper()`; "gaussian" chooses channels, and the "released" history
            averages, over the frames of a call.

        Raises:
            ValueError: a wrong shape, fewer tokens a frame than are to be kept, another number of
                channels than the stream's past has, an input that requires grad in grad mode,
                no stream after one was named, a strategy's result of another shape, a past that
                is larger than its `max_past_bytes` or a view of the tokens.
            TypeError: a wrong dtype, or not a tensor; a name that compares by identity; a
                strategy's result of another type.
        """
        named, stream = stream is not None, self._name(stream)
        side = self._check(tokens, stream)
        patches = tokens.shape[1] if side is None else side * side
        budget = self.config.kept_tokens(patches)
        if len(tokens) == 0:
            kept = budget + (side or 0)
            index = tokens.new_empty((0, kept), dtype=torch.int64)
            return PrunedTokens(stc_kernels.gather_tokens(tokens, index), index)
        known = self._streams.get(stream)
        past = None if known is None else known.past
        if isinstance(self._strategy, AnchoredStrategy):
            # Its ops check the tokens, and its pasts are bounded as they are.
            chosen, places, past = self._select(tokens, past, budget, side)
        else:
            check_tokens(tokens)
            with torch.no_grad():
                chosen, places, past = self._select(tokens, past, budget, side)
            check_past(self._strategy, tokens, past)
        self._streams[stream] = _Stream(tokens.shape[2], past)
        self._named = self._named or named
        return PrunedTokens(chosen, places)

    def reset(self, *streams: Hashable) -> None:
        """Forget the past of the named streams, or of all when none is named.

        Raises:
            ValueError: a stream that is not known; nothing is forgotten then.
            TypeError: a name that compares by identity.
        """
        check_names(streams)
        for stream in streams:
            if stream not in self._streams:
                known = ", ".join(map(repr, self._streams)) or "none"
                raise ValueError(f"no stream is named {stream!r}; streams known: {known}")
        for stream in dict.fromkeys(streams) or tuple(self._streams):
            del self._streams[stream]
        if not streams:
            self._named = False

    def __repr__(self) -> str:
        return f"TokenPruner({self.config})"

    def _select(
        self, tokens: Tensor, past: Any, budget: int, side: int | None
    ) -> tuple[Kept, Kept, Any]:
        if side is None:
            return select(self._strategy, tokens, past, budget)
        in_order = self.config.history == "causal"
        return select_in_grid(self._strategy, tokens, past, budget, side, in_order)

    def _name(self, stream: Hashable) -> Hashable:
        if stream is not None:
            check_names([stream])
            return stream
        if self._named:
            raise ValueError(
                "stream must be given, because streams have been named since the last reset(): "
                "frames without a name would share one past, whichever stream they are of"
            )
        return DEFAULT_STREAM

    def _check(self, tokens: Tensor, stream: Hashable) -> int | None:
        """Check a call's tokens; return the side of the square of patches in layout "grid"."""
        if not isinstance(tokens, Tensor):
            raise TypeError(f"tokens must be a tensor, but is a {type(tokens).__name__}")
        if tokens.dim() != 3 or tokens.shape[1] == 0 or tokens.shape[2] == 0:
            raise ValueError(
                "tokens must have shape [frames, tokens, channels], with at least one token and "
                f"one channel, but has shape {list(tokens.shape)}"
            )
        rows = tokens.shape[1]
        side = None
        if self.config.layout == "grid":
            side = math.isqrt(rows)
            if side * (side + 1) != rows:
                raise ValueError(
                    "tokens must have s · (s + 1) rows a frame in layout 'grid' (182 for 13 × 13 "
                    f"patches), but has {rows}"
                )
            rows = side * side
        if self.config.kept_tokens(rows) > rows:
            raise ValueError(
                f"tokens_per_frame must be in 1..{rows}, the tokens a frame has, but is "
                f"{self.config.tokens_per_frame}"
            )
        known = self._streams.get(stream)
        if known is not None and known.width != tokens.shape[2]:
            raise ValueError(
                f"tokens must have {known.width} channels like the frames before of stream "
                f"{stream!r}, but has {tokens.shape[2]}: reset the stream if it is a new one"
            )
        return side
