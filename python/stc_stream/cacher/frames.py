"""What the scheduler may ask about the frames of a batch, with as few waits as can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from torch import Tensor

from stc_stream.cacher.references import FrameKind
from stc_stream.cacher.waits import fetched

Pair = tuple[int, int | None, Tensor]
"""A frame, what `BatchFrames.changed` calls its reference, and the reference's pixels."""


class BatchFrames:
    """The frames of a batch, before the layers run.

    Args:
        kinds: of each frame.
        finite: tells of all frames whether they are finite, bool [frames].
        pixels: of each frame; None: they were not seen.
        shares: (frames, references) → share of patches that differ, for each pair, float32; None:
            changes are not watched.
    """

    def __init__(
        self,
        kinds: Sequence[FrameKind],
        finite: Callable[[], Tensor],
        pixels: Sequence[Tensor] | None = None,
        shares: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor] | None = None,
    ) -> None:
        self.kinds = kinds
        self.pixels = pixels
        self._ask_finite = finite
        self._finite: Sequence[float] | None = None
        self._shares = shares
        self._known: dict[tuple[int, int | None], float] = {}

    @property
    def watched(self) -> bool:
        """Whether it can be told how much of a frame changed."""
        return self.pixels is not None and self._shares is not None

    @cached_property
    def flags(self) -> Tensor:
        """Whether all of a frame's tokens are finite, bool [frames]; not waited for."""
        return self._ask_finite()

    def finite(self, frame: int) -> bool:
        """Tell whether all of a frame's tokens are finite; waits once a batch."""
        if self._finite is None:
            self._finite = fetched([self.flags])[0]
        return bool(self._finite[frame])

    def look_ahead(self, pairs: Sequence[Pair], finite: bool) -> None:
        """Learn how much of each pair differs, in one wait.

        Args:
            pairs: the pairs; of none, nothing is learned.
            finite: whether to learn of all frames whether they are finite, in the same wait.
        """
        if not pairs:
            return
        if finite:
            self._finite, shares = fetched([self.flags, self._compared(pairs)])
        else:
            (shares,) = fetched([self._compared(pairs)])
        self._learn(pairs, shares)

    def changed(self, frame: int, reference: int | None) -> float:
        """Return the share of a frame's patches that changed.

        Args:
            frame: the frame.
            reference: the frame that it is held against; None: its stream's reference before the
                batch.
        """
        if self._shares is None:
            raise RuntimeError(
                "the policy asked for changed(), but has no attribute watches_change = True"
            )
        if self.pixels is None:
            raise RuntimeError(
                "the policy asked for changed(), but the layers were called with other frames "
                "than the tower's patch embedding: call the whole tower"
            )
        if (frame, reference) not in self._known and reference is not None:
            # Only a policy gets here; all else was asked for ahead.
            pairs = [(frame, reference, self.pixels[reference])]
            self._learn(pairs, fetched([self._compared(pairs)])[0])
        return self._known.get((frame, reference), 1.0)

    def _compared(self, pairs: Sequence[Pair]) -> Tensor:
        """Return the share of each pair, float32 [pairs]."""
        assert self.pixels is not None and self._shares is not None
        frames, _, references = zip(*pairs, strict=True)
        return self._shares([self.pixels[frame] for frame in frames], references)

    def _learn(self, pairs: Sequence[Pair], shares: Sequence[float]) -> None:
        for (frame, reference, _), share in zip(pairs, shares, strict=True):
            self._known[frame, reference] = share
