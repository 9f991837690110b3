"""A stream's Pruner: a copy of its own, which gives the same whatever the chunks."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stc_stream.pruner import PrunerConfig, TokenPruner
from stc_stream.session import checks
from stc_stream.session.memory import KeptFrame


class SessionPruner:
    """The Pruner of one stream.

    Args:
        pruner: a `PrunerConfig`; a `TokenPruner` or another callable that gives `tokens` and
            `index`, which is copied; or None, which keeps everything.
        tokens_per_frame: what the model makes of a frame; None: that is not known yet.
        width: channels of a token that it sees (D); behind them a token may have more, which go
            where it goes. None: all.

    Raises:
        TypeError: `pruner` is none of these.
        ValueError: a budget above a frame's tokens.
    """

    def __init__(self, pruner: Any, tokens_per_frame: int | None, width: int | None = None) -> None:
        self._width = width
        if isinstance(pruner, PrunerConfig):
            pruner = TokenPruner(pruner)
        elif pruner is not None and (isinstance(pruner, type) or not callable(pruner)):
            raise TypeError(
                f"pruner must be a PrunerConfig, a TokenPruner or None, but is {pruner!r}"
            )
        self._new = copy.deepcopy(pruner)
        if tokens_per_frame is not None:
            self.check_budget(tokens_per_frame)
        self.reset()

    def check_budget(self, tokens_per_frame: int) -> None:
        """Refuse a budget above a frame's tokens."""
        kept = getattr(getattr(self._new, "config", None), "tokens_per_frame", None)
        if kept is not None and kept > tokens_per_frame:
            raise ValueError(
                f"tokens_per_frame must be in 1..{tokens_per_frame}, the tokens that the model "
                f"makes of a frame, but is {kept}"
            )

    def keep(self, tokens: Tensor) -> list[KeptFrame]:
        """Return what is kept of consecutive frames, [F, T, D], as if given to it one by one."""
        if self.whole_calls or self._strategy == "dual_anchor":
            # The paper's rule keeps the same at once, and is faster so.
            return self.keep_together(tokens)
        return [kept for frame in tokens.split(1) for kept in self.keep_together(frame)]

    def keep_together(self, tokens: Tensor) -> list[KeptFrame]:
        """Return what is kept of frames that it is given at once, for rules about whole clips."""
        if self._pruner is None:
            everything = torch.arange(tokens.shape[1], device=tokens.device)
            return [KeptFrame(frame, everything) for frame in tokens]
        tokens, more = tokens[..., : self._width], tokens[..., self._width or tokens.shape[2] :]
        pruned = self._pruner(tokens)
        if not (hasattr(pruned, "tokens") and hasattr(pruned, "index")):
            raise TypeError(
                "pruner must return an object with tokens and index, but returned a "
                f"{type(pruned).__name__}"
            )
        if not len(pruned.tokens) == len(pruned.index) == len(tokens):
            raise ValueError(
                f"pruner must return tokens and index of {len(tokens)} frames, but returned "
                f"{len(pruned.tokens)} and {len(pruned.index)}"
            )
        # Tensors of all frames, or lists of one a frame: the same here.
        kept = [KeptFrame(*frame) for frame in zip(pruned.tokens, pruned.index, strict=True)]
        if not isinstance(self._pruner, TokenPruner):
            for ours, frame in zip(kept, tokens, strict=True):
                checks.check_kept(ours.tokens, ours.index, frame)
        if more.shape[2]:
            kept = [
                replace(ours, tokens=torch.cat([ours.tokens, own[ours.index]], dim=1))
                for ours, own in zip(kept, more, strict=True)
            ]
        return kept

    def budget(self, tokens: int) -> int | None:
        """Return how many of a frame's tokens will be kept, where that is known beforehand."""
        if self._pruner is None:
            return tokens
        config = getattr(self._pruner, "config", None)
        if not isinstance(config, PrunerConfig) or config.layout != "flat":
            return None
        # A rule of one's own may take the budget for its mean.
        return config.kept_tokens(tokens) if isinstance(config.strategy, str) else None

    @property
    def whole_calls(self) -> bool:
        """Whether its rule is about whole clips, and wants all frames of a feed at once."""
        return bool(getattr(self._strategy, "whole_calls", False))

    def copy(self) -> SessionPruner:
        """Return one with the same past, which goes its own way."""
        other = copy.copy(self)
        other._pruner = copy.deepcopy(self._pruner)
        return other

    def reset(self) -> None:
        """Forget the past."""
        # A pruner of the user's own may have a past and no `reset`.
        self._pruner = copy.deepcopy(self._new)
        if hasattr(self._pruner, "reset"):
            self._pruner.reset()

    @property
    def _strategy(self) -> Any:
        return getattr(getattr(self._pruner, "config", None), "strategy", None)
