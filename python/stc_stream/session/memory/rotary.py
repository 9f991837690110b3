"""Rotary positions of keys that are in a cache: taken off, put on, and moved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Rotary:
    """The rotary positions of an LLM, one axis, as Qwen2 and Llama have them.

    Args:
        frequencies: radians a position, float32 [D / 2]; dimension i turns with i + D / 2.

    Source: RoFormer, arXiv 2104.09864; transformers' `compute_default_rope_parameters`.
    """

    def __init__(self, frequencies: Tensor) -> None:
        self._frequencies = frequencies

    @classmethod
    def of(cls, config: Any, what: str) -> Rotary:
        """Read an LLM's config.

        Args:
            what: for messages, who asks.

        Raises:
            TypeError: positions of several axes.
            ValueError: positions that are scaled, or of a part of the dimensions.
        """
        settings = dict(getattr(config, "rope_parameters", None) or {})
        if any("mrope" in str(word) for word in (*settings, *settings.values())):
            raise TypeError(
                f"{what} turns keys to other positions, which is for rotary positions of one axis, "
                "but the model's have several (time, height, width): use another memory, or "
                "WindowMemory with positions='kept'"
            )
        kind = settings.get("rope_type", settings.get("type", "default"))
        if kind != "default" or "rope_theta" not in settings:
            raise ValueError(
                f"{what} turns keys to other positions, which is for plain rotary positions "
                f"(rope_type 'default'), but the model's settings are {settings}"
            )
        part = settings.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", 1.0))
        if part not in (None, 1, 1.0):
            raise ValueError(
                f"{what} turns keys to other positions, which is for keys that are turned whole, "
                f"but the model's partial_rotary_factor is {part}"
            )
        width = getattr(config, "head_dim", None)
        width = width or config.hidden_size // config.num_attention_heads
        exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
        return cls(1.0 / settings["rope_theta"] ** exponents)

    def turn(self, keys: Tensor, positions: Tensor, back: bool = False) -> Tensor:
        """Return keys moved by so many positions each.

        Args:
            keys: [..., n, D]; computed with in float32.
            positions: int64 [n], or [1] for all.
            back: move the other way.
        """
        angles = positions.to(keys.device)[:, None].float() * self._frequencies.to(keys.device)
        cos, sin = angles.cos(), -angles.sin() if back else angles.sin()
        first, second = keys.float().chunk(2, dim=-1)
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        return turned.to(keys.dtype)
