"""The small video LLM that ships with the package: where it lies, and its tower."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Literal

from stc_stream.towers.load import VisionModel, load_tower

SmallModel = Literal["dense", "gaps"]


def model_folder(name: SmallModel = "dense") -> Path:
    """Return the folder of a model, for `from_pretrained`; its card is `README.md` in the first.

    Args:
        name: "dense": its LLM was trained on whole frames; "gaps": on random parts of them.

    Raises:
        ValueError: another name.
    """
    if name not in ("dense", "gaps"):
        raise ValueError(f"name must be 'dense' or 'gaps', but is {name!r}")
    folder = Path(str(files("stc_stream"))) / "data" / "model"
    return folder if name == "dense" else folder / name


def load_small_tower(device: str = "auto", dtype: str = "auto") -> VisionModel:
    """Return the tower of both models: small, but its features are learned ones.

    Args:
        device, dtype: as in `load_tower`.
    """
    tower = load_tower(str(model_folder()), device=device, dtype=dtype)
    return replace(tower, name="the small trained tower")
