"""Temporal anchors: what a stream's past looks like, in a state that does not grow with it.

A mean that is not finite (of a broken frame) is left out, so that it does not spoil every later
anchor. Sums are float64; a history is never changed, each call makes a new one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class FrameHistory:
    """The past frames of a stream: a running sum of their means, or the last means alone.

    Attributes:
        frames: frames so far.
        means: float64 [n, D]. Unbounded: one row, the sum of all. With a window: the last means,
            at most that many.
        counts: float64 [n], how many finite means each row stands for.
    """

    frames: int
    means: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, width: int, device: torch.device) -> FrameHistory:
        """Return the history of a stream that has had no frame."""
        means = torch.zeros((0, width), dtype=torch.float64, device=device)
        return cls(0, means, means.new_zeros(0))

    def advance(self, frame_means: Tensor, window: int | None) -> tuple[Tensor, FrameHistory]:
        """Return each new frame's temporal anchor, float32 [F, D], and the history after them.

        Args:
            frame_means: the new frames' means, in time order, float32 [F, D]. The anchor of a
                frame without a past is zero.
            window: past frames an anchor is the mean of; None: all.
        """
        new, finite = _finite(frame_means)
        held, frames = len(self.means), self.frames + len(new)
        means = torch.cat([self.means.to(new.device), new])
        counts = torch.cat([self.counts.to(new.device), finite])
        if window is None:
            sums, totals = _sums_before(means), _sums_before(counts)
            past, seen = sums[held:-1], totals[held:-1]
            means, counts = sums[-1:].clone(), totals[-1:].clone()
        else:
            first = frames - len(means)
            past = _window_sums(means, first, window)[held:]
            seen = _window_sums(counts, first, window)[held:]
            kept = min(window, len(means))
            means, counts = means[-kept:].clone(), counts[-kept:].clone()
        anchors = (past / seen.clamp(min=1)[:, None]).float()
        return anchors, FrameHistory(frames, means, counts)


@dataclass(frozen=True, eq=False)
class CallHistory:
    """The past calls as the published code has them: a mean a call, over its quiet channels.

    Attributes:
        total: sum of the calls' means, float64 [c]; entry j is the j-th quietest channel of each
            call, whichever that was.
        count: how many finite means the sum is of, float64 scalar.
    """

    total: Tensor
    count: Tensor

    @classmethod
    def empty(cls, channels: int, device: torch.device) -> CallHistory:
        """Return the history of a stream that has had no call."""
        total = torch.zeros(channels, dtype=torch.float64, device=device)
        return cls(total, total.new_zeros(()))

    def advance(self, call_mean: Tensor) -> tuple[Tensor, CallHistory]:
        """Return the temporal anchor with a new call included, float32 [c], and the history."""
        new, finite = _finite(call_mean[None])
        total = self.total.to(new.device) + new[0]
        count = self.count.to(new.device) + finite[0]
        anchor = (total / count.clamp(min=1)).float()
        return anchor, CallHistory(total, count)


def _sums_before(rows: Tensor) -> Tensor:
    """Return the sum of the rows before each place, [n + 1, ..]."""
    return torch.cat([torch.zeros_like(rows[:1]), rows.cumsum(0)])


def _window_sums(rows: Tensor, first: int, window: int) -> Tensor:
    """Return, for each row, the sum of at most `window` rows before it, [n, ..].

    A difference of two running sums would lose what is small beside a frame that has left the
    window. So the frames are cut into runs as long as the window, and a window is the end of one
    run and the beginning of the next. Runs go by the frames' numbers: frames are added in the same
    order however they come in calls.

    Args:
        rows: one a frame, float64.
        first: the number of the first of these frames in its stream.
        window: frames.
    """
    count = len(rows)
    runs = rows.tensor_split(tuple(range(window - first % window, count, window)))
    own = torch.cat([_sums_before(run)[:-1] for run in runs])
    ends = torch.cat([run.flip(0).cumsum(0).flip(0) for run in runs])
    none = torch.zeros_like(rows[: min(window, count)])
    return own + torch.cat([none, ends[: count - len(none)]])


def _finite(means: Tensor) -> tuple[Tensor, Tensor]:
    """Return means as float64 with rows that are not finite zeroed, and 1 or 0 for each row."""
    finite = means.isfinite().all(dim=1)
    return torch.where(finite[:, None], means, 0).double(), finite.double()
