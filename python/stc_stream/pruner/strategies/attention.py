"""What rules are told of the tower's attention, for those that go by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, eq=False)
class TowerAttention:
    """What frames' tokens were in the attention of one layer of the tower.

    Attributes:
        received: how much attention each token received, mean over heads and over all tokens that
            attend, float32 [F, T].
        from_class: from the class token alone, mean over heads; `received` where the tower has
            none.
        keys: each token's key, mean over heads, float32 [F, T, C].
    """

    received: Tensor
    from_class: Tensor
    keys: Tensor


class AttentionSource(Protocol):
    """Where a rule finds the attention of the frames that it is given."""

    def take(self, frames: int, tokens: int) -> TowerAttention:
        """Return the attention of the next frames that the tower has run.

        Args:
            frames: how many (F).
            tokens: tokens that the model makes of a frame (T).

        Raises:
            ValueError: the tower has not run so many, or its patches are not so many in a square.
        """
