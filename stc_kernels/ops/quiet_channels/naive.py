"""`quiet_channels` in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def quiet_channels(tokens: Tensor, keep: int) -> Tensor:
    """Return the channels of lowest variance, ascending by variance."""
    rows = tokens.reshape(-1, tokens.shape[2]).double()  # [F * T, D]
    variance = (rows - rows.mean(0)).square().mean(0).float()
    variance = torch.where(variance.isfinite(), variance, torch.inf)
    return torch.argsort(variance, stable=True)[:keep]
