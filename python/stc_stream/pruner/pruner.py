"""The pruner: scores the frames of each stream against its past and keeps the novel tokens."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

import stc_kernels
from stc_stream.pruner.anchors import CallHistory, FrameHistory
from stc_stream.pruner.config import PrunerConfig
from stc_stream.stream_names import DEFAULT_STREAM, check_names


@dataclass(frozen=True, eq=False)
class PrunedTokens:
    """The tokens kept of a call's frames.

    Attributes:
        tokens: [F, k, D], of the input's dtype. In "grid" the newline tokens are among them: k
            patches and one newline token for each row of patches.
        index: int64 [F, k], each kept token's row in its frame: ascending, but for the "released"
            history with "grid", which has a frame's newline rows after its patches.
    """

    tokens: Tensor
    index: Tensor


class TokenPruner:
    """Keeps the most novel tokens of each frame, with one history a stream.

    Source: arXiv 2512.00891, STC-Pruner.

    Attributes:
        config: the settings.
    """

    def __init__(self, config: PrunerConfig) -> None:
        if not isinstance(config, PrunerConfig):
            raise TypeError(f"config must be a PrunerConfig, but is a {type(config).__name__}")
        self.config = config
        self._histories: dict[Hashable, FrameHistory | CallHistory] = {}
        self._named = False

    def __call__(self, tokens: Tensor, stream: Hashable = None) -> PrunedTokens:
        """Keep k tokens of each frame and add the frames to the stream's history.

        Args:
            tokens: [F, T, D], consecutive frames of one stream; float32, float16 or bfloat16, any
                strides. F may be 0. In "grid", T is s · (s + 1).
            stream: whose frames these are, a hashable name that compares by value; None: the one
                stream, "default", of a pruner that is told no names.

        Returns:
            The kept tokens and their rows. Frames given at once or one by one give the same with
            `PrunerConfig.paper()`; "gaussian" chooses channels, and the "released" history
            averages, over the frames of a call.

        Raises:
            ValueError: a wrong shape, fewer tokens a frame than are to be kept, another number of
                channels than the stream's history has, an input that requires grad in grad mode,
                no stream after one was named.
            TypeError: a wrong dtype, or not a tensor; a name that compares by identity.
        """
        named, stream = stream is not None, self._name(stream)
        side = self._check(tokens, stream)
        frames = tokens if side is None else _patches(tokens, side)
        if tokens.shape[0] == 0:
            index = tokens.new_empty((0, self._kept(frames)), dtype=torch.int64)
        else:
            kept, index, history = self._prune(frames, stream)
            self._histories[stream] = history
            self._named = self._named or named
            if side is None:
                return PrunedTokens(kept, index)
        if side is not None:
            index = _with_newlines(index, side, in_order=self.config.history == "causal")
        return PrunedTokens(stc_kernels.gather_tokens(tokens, index), index)

    def reset(self, *streams: Hashable) -> None:
        """Forget the past of the named streams, or of all when none is named.

        Raises:
            ValueError: a stream that is not known; nothing is forgotten then.
            TypeError: a name that compares by identity.
        """
        check_names(streams)
        for stream in streams:
            if stream not in self._histories:
                known = ", ".join(map(repr, self._histories)) or "none"
                raise ValueError(f"no stream is named {stream!r}; streams known: {known}")
        for stream in dict.fromkeys(streams) or tuple(self._histories):
            del self._histories[stream]
        if not streams:
            self._named = False

    def __repr__(self) -> str:
        return f"TokenPruner({self.config})"

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

    def _prune(
        self, frames: Tensor, stream: Hashable
    ) -> tuple[Tensor, Tensor, FrameHistory | CallHistory]:
        config = self.config
        k, width = self._kept(frames), frames.shape[2]
        channels = None
        if config.strategy == "gaussian":
            channels = stc_kernels.quiet_channels(frames, config.scored_channels(width))
        with torch.no_grad():
            means = frames.mean(dim=1, dtype=torch.float32)
        past = self._histories.get(stream)
        if config.history == "released":
            assert channels is not None
            calls = (
                past
                if isinstance(past, CallHistory)
                else CallHistory.empty(width, len(channels), frames.device)
            )
            anchor, history = calls.advance(means.mean(dim=0)[channels])
            kept, index = self._keep(frames, k, anchor, channels)
            return kept, index, history
        seen = past if isinstance(past, FrameHistory) else FrameHistory.empty(width, frames.device)
        anchors, after = seen.advance(means, config.window)
        if channels is not None:
            anchors = anchors[:, channels]
        if seen.frames > 0:
            kept, index = self._keep(frames, k, anchors, channels)
            return kept, index, after
        # The stream's first frame has no past to be held against.
        pieces = [self._keep(frames[:1], k, None, channels)]
        if frames.shape[0] > 1:
            pieces.append(self._keep(frames[1:], k, anchors[1:], channels))
        kept, index = (torch.cat(tensors) for tensors in zip(*pieces, strict=True))
        return kept, index, after

    def _keep(
        self, frames: Tensor, k: int, anchor: Tensor | None, channels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return stc_kernels.prune_tokens(
            frames, k, anchor, self.config.strategy, self.config.alpha, channels
        )

    def _kept(self, frames: Tensor) -> int:
        return self.config.kept_tokens(frames.shape[1])

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
        history = self._histories.get(stream)
        if history is not None and history.width != tokens.shape[2]:
            raise ValueError(
                f"tokens must have {history.width} channels like the frames before of stream "
                f"{stream!r}, but has {tokens.shape[2]}: reset the stream if it is a new one"
            )
        return side


def _patches(tokens: Tensor, side: int) -> Tensor:
    """Leave the newline rows out: [F, s(s + 1), D] to [F, s², D]."""
    frames, _, width = tokens.shape
    return tokens.reshape(frames, side, side + 1, width)[:, :, :side].reshape(
        frames, side * side, width
    )


def _with_newlines(index: Tensor, side: int, in_order: bool) -> Tensor:
    """Turn places among the patches into rows of the frame, and add the newline rows."""
    rows = index + index // side
    newlines = torch.arange(side, device=index.device) * (side + 1) + side
    rows = torch.cat([rows, newlines.expand(index.shape[0], side)], dim=1)
    return rows.sort(dim=1).values if in_order else rows
