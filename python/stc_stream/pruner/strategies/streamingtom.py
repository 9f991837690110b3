"""StreamingTOM's token reduction: what changed by attention, what stayed by clusters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stc_stream.pruner.checks import check_count, check_number
from stc_stream.pruner.strategies.attention import AttentionSource
from stc_stream.pruner.strategies.frame_change import likeness_to_frame_before
from stc_stream.pruner.strategies.strategy import Kept, PruningStrategy


@dataclass(frozen=True)
class StreamingTom(PruningStrategy):
    """Keeps changed tokens by attention and merges the others by density peaks. Causal.

    Causal Temporal Reduction of StreamingTOM (arXiv 2510.18269). A token whose cosine with the same
    place in the frame before is above `threshold` is static, any other dynamic; all of a stream's
    first frame are dynamic. A frame's budget is shared between the two by their numbers, static
    ones rounded down. Of the dynamic ones those are kept that receive most attention in the
    tower's last layer. Of the static ones the density peaks stay: density is the exponential of
    minus the mean squared distance to the `neighbours` nearest (itself among them), and a peak has
    a high product of density and distance to the nearest denser token. Every other static token
    goes to its nearest peak, which becomes β · itself + (1 − β) · the mean of what went to it.

    Deviations from the published code: it takes the distance to the nearest token that is *less*
    dense, against its paper, and adds noise against ties, which go to the lower place here; a
    token that is not finite is dynamic, and kept last. What StreamingTOM does with its cache
    afterwards is no part of this rule.

    Attributes:
        attention: of the last layer, recorded in the tower.
        threshold: cosine above which a token is static, −1 to 1.
        neighbours: k of the densities.
        beta: weight of a peak in what it becomes, 0 to 1.

    Raises:
        ValueError, TypeError: a setting out of range, or of another type.
    """

    attention: AttentionSource
    threshold: float = 0.9
    neighbours: int = 7
    beta: float = 0.6

    def __post_init__(self) -> None:
        for name, least in (("threshold", -1), ("beta", 0)):
            value = getattr(self, name)
            check_number(name, value)
            if not least <= value <= 1:
                raise ValueError(f"{name} must be in [{least}, 1], but is {value}")
        check_count("neighbours", self.neighbours)

    def select(self, tokens: Tensor, past: Tensor | None, budget: int) -> tuple[Kept, Kept, Tensor]:
        attention = self.attention.take(*tokens.shape[:2])
        cosines, last = likeness_to_frame_before(tokens, past)
        static = cosines > self.threshold
        frames = zip(tokens, static, attention.received, strict=True)
        found = [self._of_frame(*frame, budget) for frame in frames]
        kept = torch.stack([tokens for tokens, _ in found])
        return kept, torch.stack([index for _, index in found]), last

    def _of_frame(
        self, frame: Tensor, static: Tensor, attended: Tensor, budget: int
    ) -> tuple[Tensor, Tensor]:
        """Return what is kept of a frame [T, D], and the places."""
        still, changed = static.nonzero().flatten(), (~static).nonzero().flatten()
        # Never more than there are: each share is rounded, and the budget at most all.
        of_still = min(budget * len(still) // len(frame), len(still))
        of_changed = min(budget - of_still, len(changed))
        of_still = budget - of_changed
        finite = frame.isfinite().all(dim=-1)
        scores = attended.where(finite, -torch.inf).nan_to_num(-torch.inf)[changed]
        order = scores.argsort(descending=True, stable=True)[:of_changed]
        peaks, merged = self._peaks(frame[still], of_still)
        index = torch.cat([still[peaks], changed[order]])
        kept = torch.cat([merged, frame[changed[order]]])
        index, places = index.sort()
        return kept[places], index

    def _peaks(self, tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the places of density peaks among tokens [n, D], and what they become."""
        if count == len(tokens):
            return torch.arange(count, device=tokens.device), tokens
        values = tokens.float()
        # Not by a product of matrices: two tokens must be as far from each other either way.
        apart = torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist")
        apart = apart / values.shape[1] ** 0.5
        nearest = apart.topk(min(self.neighbours, len(values) - 1), largest=False).values
        density = (-nearest.square().mean(dim=1)).exp()
        denser = density[None, :] > density[:, None]
        to_denser = apart.where(denser, apart.max()).min(dim=1).values
        order = (density * to_denser).argsort(descending=True, stable=True)
        peaks = order[:count].sort().values
        if not count:
            return peaks, tokens[peaks]
        others = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
        others[peaks] = False
        nearest_peak = apart[others][:, peaks].argmin(dim=1)
        sums = torch.zeros_like(values[peaks]).index_add_(0, nearest_peak, values[others])
        counts = nearest_peak.bincount(minlength=count)[:, None]
        mixed = self.beta * values[peaks] + (1 - self.beta) * sums / counts.clamp(min=1)
        return peaks, mixed.where(counts > 0, values[peaks]).to(tokens.dtype)
