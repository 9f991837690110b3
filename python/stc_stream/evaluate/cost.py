"""What a tower's arithmetic allows at most, counted from its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from stc_stream.ratios import share_of

if TYPE_CHECKING:
    from stc_stream.towers import TowerSpec


@dataclass(frozen=True)
class CostModel:
    """Multiplications of a tower's layers for one token, summed over the layers.

    What is done once for a frame whatever is reused (patch embedding, norms, additions) is not
    counted, so that no implementation can pass `max_speedup`.

    Attributes:
        tokens: tokens a frame, prefix included (T).
        prefix: tokens that are always recomputed.
        keys: of the key projections, which every token needs.
        rest: of the query, value and output projections, the MLPs and attention over T tokens.
    """

    tokens: int
    prefix: int
    keys: int
    rest: int

    @classmethod
    def of(cls, tower: TowerSpec, tokens: int) -> CostModel:
        """Count a tower's layers for frames of `tokens` tokens, prefix included."""
        keys = rest = 0
        for layer in tower.layers:
            key = layer.key.in_features * layer.key.out_features
            linear = sum(
                module.in_features * module.out_features
                for module in layer.module.modules()
                if isinstance(module, nn.Linear)
            )
            attention = tokens * (layer.query.out_features + layer.value.out_features)
            keys += key
            rest += linear - key + attention
        return cls(tokens, tower.prefix_tokens, keys, rest)

    @property
    def dense(self) -> int:
        """Multiplications of a dense frame."""
        return self.tokens * (self.keys + self.rest)

    def selective_share(self, update_ratio: float) -> float:
        """Return a selective frame's share of a dense frame's multiplications."""
        chosen = share_of(self.tokens - self.prefix, update_ratio)
        return (self.tokens * self.keys + (self.prefix + chosen) * self.rest) / self.dense

    def cycle_share(self, update_ratio: float, refresh_interval: int) -> float:
        """Return the same for a refresh frame and the selective ones that follow it."""
        selective = (refresh_interval - 1) * self.selective_share(update_ratio)
        return (1 + selective) / refresh_interval

    def max_speedup(self, update_ratio: float, refresh_interval: int | None = None) -> float:
        """Return how many times as fast as dense a cycle can be; None: selective frames alone."""
        if refresh_interval is None:
            return 1 / self.selective_share(update_ratio)
        return 1 / self.cycle_share(update_ratio, refresh_interval)
