"""What a rule is asked: which tokens of a stream's frames are kept, given the stream's past."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

import stc_kernels

Kept: TypeAlias = Tensor | list[Tensor]
"""One tensor for all frames of a call, or a list of one a frame: they keep different numbers."""


class PruningStrategy(ABC):
    """Chooses the tokens of each frame that are kept.

    A strategy holds settings and no state: one object serves all streams of a pruner, and what it
    remembers of a stream is the `past` that it returns and gets back at the stream's next call.

    Attributes:
        whole_calls: whether the rule is about whole clips, so that what is kept of a frame depends
            on the frames that come with it, later ones too. A session gives it all frames of a
            feed at once; others are given frame by frame.
    """

    whole_calls: ClassVar[bool] = False

    @abstractmethod
    def select(self, tokens: Tensor, past: Any, budget: int) -> tuple[Kept, Kept, Any]:
        """Choose among the tokens of a call's frames.

        Frames may come in calls of any number: what is kept of a frame should not depend on how
        many others came with it, unless the rule is about whole clips.

        Args:
            tokens: [F, T, D], consecutive frames of one stream, F ≥ 1; not to be changed.
            past: what the last call of this stream returned; None: its first. Not to be changed: a
                call that fails leaves it as it was. It must not grow with the stream, which may
                never end (`max_past_bytes` is checked), nor hold a view of the tokens. It is
                dropped when the stream is reset.
            budget: tokens to keep of each frame, 1 to T. A rule with a number of its own takes it
                for its mean, or its most, and says so.

        Returns:
            The kept tokens, [F, k, D] of the dtype of `tokens`; their places, int64 [F, k],
            ascending in each frame; and the new past. Where frames keep different numbers, two
            lists of F tensors, [k_f, D] and [k_f]. A rule that merges what it drops returns merged
            tokens, at the place of one of them.
        """

    def max_past_bytes(self, tokens: int, channels: int) -> int:
        """Return how many bytes of tensors a stream's past may hold; more is a `ValueError`.

        By default as much as 16 frames in float32.

        Args:
            tokens: T, of the frames of the call; in "grid" with the newline tokens.
            channels: D.
        """
        return 16 * tokens * channels * 4


class ScoreStrategy(PruningStrategy):
    """Keeps the tokens of highest novelty, as many of each frame as the budget says.

    Attributes:
        scores_frames_together: whether `score` may be given several frames, because it makes the
            same of them as of one after the other. If not, it is called for each frame.
    """

    scores_frames_together: ClassVar[bool] = False

    @abstractmethod
    def score(self, tokens: Tensor, past: Any) -> tuple[Tensor, Any]:
        """Say how novel each token is.

        Args:
            tokens: [F, T, D], consecutive frames of one stream; F is 1 unless
                `scores_frames_together`.
            past, and the new one that is returned: as in `select`.

        Returns:
            The novelty, floating point [F, T], higher is kept; of equal ones the token that comes
            first; one that is not finite counts as the lowest. And the new past.
        """

    def scores(self, tokens: Tensor, past: Any) -> tuple[Tensor, Any]:
        """Return the novelty of all tokens of several frames, float32 [F, T], and the new past.

        Raises:
            TypeError: `score` returned no tuple, or no floating-point tensor.
            ValueError: it returned one of another shape or device.
        """
        if self.scores_frames_together:
            return self._checked(tokens, past)
        rows = []
        for frame in tokens.split(1):
            row, past = self._checked(frame, past)
            rows.append(row)
        return torch.cat(rows), past

    def select(self, tokens: Tensor, past: Any, budget: int) -> tuple[Kept, Kept, Any]:
        novelty, past = self.scores(tokens, past)
        kept, index = stc_kernels.topk_gather(tokens, novelty, budget)
        return kept, index, past

    def _checked(self, tokens: Tensor, past: Any) -> tuple[Tensor, Any]:
        name = type(self).__name__
        scored: object = self.score(tokens, past)
        if not isinstance(scored, tuple) or len(scored) != 2:
            raise TypeError(
                f"{name}.score must return a tuple (novelty, past), but returned a "
                f"{type(scored).__name__}"
            )
        novelty, past = scored
        if not isinstance(novelty, Tensor) or not novelty.is_floating_point():
            found = novelty.dtype if isinstance(novelty, Tensor) else type(novelty).__name__
            raise TypeError(
                f"{name}.score must return a floating-point tensor and a past, but its novelty is "
                f"{found}"
            )
        expected = tokens.shape[:2]
        if novelty.shape != expected or novelty.device != tokens.device:
            raise ValueError(
                f"{name}.score must return a novelty of shape {list(expected)} on {tokens.device}, "
                f"but returned {list(novelty.shape)} on {novelty.device}"
            )
        return novelty.float(), past


def check_selection(name: str, kept: object, index: object, tokens: Tensor) -> None:
    """Refuse what a strategy's `select` may not return; places are read on a CPU alone.

    Args:
        name: of the strategy.
        kept, index: what it returned.
        tokens: what it was given, [F, T, D].

    Raises:
        TypeError: something that is no tensor, or of another dtype.
        ValueError: another shape or device, or places that are not ascending and in the frame.
    """
    frames = tokens.shape[0]
    if isinstance(kept, Tensor) and isinstance(index, Tensor):
        _check_shapes(name, kept, index, (frames,), tokens)
        return
    if not isinstance(kept, list) or not isinstance(index, list):
        raise TypeError(
            f"{name}.select must return two tensors or two lists of tensors and a past, but "
            f"returned a {type(kept).__name__} and a {type(index).__name__}"
        )
    if len(kept) != frames or len(index) != frames:
        raise ValueError(
            f"{name}.select must return lists of {frames} tensors, one a frame, but returned "
            f"{len(kept)} and {len(index)}"
        )
    for each, places in zip(kept, index, strict=True):
        _check_shapes(name, each, places, (), tokens)


def _check_shapes(
    name: str, kept: object, index: object, frames: tuple[int, ...], tokens: Tensor
) -> None:
    for what, value, dtype in (("tokens", kept, tokens.dtype), ("places", index, torch.int64)):
        if not isinstance(value, Tensor) or value.dtype != dtype:
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name}.select must return {what} of {dtype}, but returned {found}")
        if value.device != tokens.device:
            raise ValueError(
                f"{name}.select must return {what} on {tokens.device}, but returned {value.device}"
            )
    assert isinstance(kept, Tensor)
    assert isinstance(index, Tensor)
    count = index.shape[-1] if index.dim() else 0
    if index.shape != (*frames, count) or kept.shape != (*frames, count, tokens.shape[2]):
        shape = [*frames, "k", tokens.shape[2]]
        raise ValueError(
            f"{name}.select must return tokens of shape [{', '.join(map(str, shape))}] and places "
            f"of [{', '.join(map(str, shape[:-1]))}], but returned {list(kept.shape)} and "
            f"{list(index.shape)}"
        )
    if index.device.type != "cpu" or not index.numel():
        return
    # On a GPU, reading them would wait for it.
    if int(index.min()) < 0 or int(index.max()) >= tokens.shape[1]:
        raise ValueError(
            f"{name}.select must return places in 0..{tokens.shape[1] - 1}, but returned "
            f"{int(index.min())}..{int(index.max())}"
        )
    if bool((index.diff() <= 0).any()):
        raise ValueError(f"{name}.select must return places in ascending order, each once")
