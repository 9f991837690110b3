"""The small video LLM that ships with the package: where it lies, and its tower."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from stc_stream.towers.load import VisionModel, load_tower


def model_folder() -> Path:
    """Return the model's folder, for `from_pretrained`; its card is `README.md` there."""
    return Path(str(files("stc_stream"))) / "data" / "model"


def load_small_tower(device: str = "auto", dtype: str = "auto") -> VisionModel:
    """Return its tower: small, but its features are learned ones.

    Args:
        device, dtype: as in `load_tower`.
    """
    tower = load_tower(str(model_folder()), device=device, dtype=dtype)
    return replace(tower, name="the small trained tower")
