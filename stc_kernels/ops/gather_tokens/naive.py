"""`gather_tokens` in plain PyTorch: the definition."""

from __future__ import annotations

from torch import Tensor


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Return the tokens that `index` names, in its order."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))
