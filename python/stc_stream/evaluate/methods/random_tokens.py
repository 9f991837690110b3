"""Random tokens are recomputed: the control that every choice of tokens must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stc_stream.cacher import Cacher, CacherConfig


@dataclass(frozen=True)
class RandomTokens:
    """The paper's Cacher, but which tokens a selective frame recomputes is left to chance.

    No paper. Each layer of each frame draws anew.

    Attributes:
        update_ratio, refresh_interval: as in `CacherConfig`.
        seed: of the draws; they start anew with each tower.
    """

    update_ratio: float = 0.25
    refresh_interval: int = 4
    seed: int = 0

    def attach(self, tower: nn.Module) -> Cacher:
        """Return a Cacher that recomputes random tokens."""
        chance = Chance(self.seed)
        config = CacherConfig.paper(self.update_ratio, self.refresh_interval, selection=chance)
        return config.attach(tower)


class Chance:
    """Chooses tokens at random, each as likely as another."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def choose(self, current: Tensor, reference: Tensor, k: int) -> Tensor:
        """Return k different tokens of each frame, int64 [F, k] ascending.

        Args:
            current: keys of each frame's patches, [F, P, C].
            reference: keys of what they are held against, [F, P, C].
            k: how many.
        """
        draws = torch.rand(current.shape[:2], generator=self._generator)
        return draws.topk(k, dim=1).indices.sort(dim=1).values.to(current.device)


METHOD = RandomTokens
