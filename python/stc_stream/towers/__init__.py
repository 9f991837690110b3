"""Vision towers, read by their structure: one file a family, and its names stay in it."""

from __future__ import annotations

import torch
import torch.fx
from torch import nn

from stc_stream.towers import clip, dinov2, dinov3, internvit, qwen_vl, siglip, timm_vit
from stc_stream.towers.tower import (
    Entry,
    Family,
    Projection,
    TowerLayer,
    TowerSpec,
    Unreadable,
)

__all__ = [
    "FAMILIES",
    "Entry",
    "Family",
    "Projection",
    "TowerLayer",
    "TowerSpec",
    "Unreadable",
    "read_tower",
]

FAMILIES: dict[str, Family] = {
    "SigLIP": siglip,
    "CLIP": clip,
    "DINOv2": dinov2,
    "DINOv3": dinov3,
    "InternViT": internvit,
    "Qwen-VL": qwen_vl,
    "timm ViT": timm_vit,
}
"""The families that can be read, by name; add to it to read another (docs/towers.md)."""


def read_tower(model: nn.Module) -> TowerSpec:
    """Find the one vision tower in `model` and read its layers.

    Args:
        model: the tower itself, or any module that holds exactly one (a SigLIP with its text
            model, a LLaVA-like model).

    Returns:
        The tower, with the path of its module inside `model`.

    Raises:
        TypeError: `model` is not a module, or holds no tower of a family that can be read; the
            message says what came closest and what it lacked.
        ValueError: `model` holds several towers; the message gives their paths.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"the tower must be a torch.nn.Module, or a model that holds one, "
            f"but is a {type(model).__name__}"
        )
    if isinstance(model, torch.jit.ScriptModule | torch.fx.GraphModule):
        raise TypeError(
            f"the tower must be a module that runs in Python, but is a {type(model).__name__}, "
            "recorded from one: attach the Cacher to the original"
        )
    found: list[TowerSpec] = []
    refused: dict[str, str] = {}
    for path, module in model.named_modules():
        for reader in FAMILIES.values():
            if not reader.resembles(module):
                continue
            try:
                found.append(reader.read(module, path))
            except Unreadable as reason:
                # Wrappers that pass attributes on (peft's) lack what the tower inside lacks.
                name = f"{type(module).__name__}{f' ({path})' if path else ''}"
                refused[str(reason)] = f"{name} {reason}"
    # A wrapper that passes attributes on (torch.compile's) resembles the tower inside, found last.
    found = list({id(tower.layers[0].module): tower for tower in found}.values())
    if len(found) > 1:
        paths = ", ".join(tower.path or "the model itself" for tower in found)
        raise ValueError(
            f"{type(model).__name__} holds {len(found)} vision towers ({paths}): pass one of them"
        )
    if not found:
        seen = "; ".join(refused.values()) or "no vision encoder was found in it"
        raise TypeError(
            f"{type(model).__name__} holds no vision tower that can be read: {seen}. "
            f"Families that can be read: {', '.join(FAMILIES)}"
        )
    return found[0]
