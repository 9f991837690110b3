"""The model as it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Dense:
    """Every frame is computed whole, and every token kept: what the others are held against."""


METHOD = Dense
