"""CLIP: SigLIP's layers behind a class token.

Also inside LLaVA's CLIPVisionTower (Dispider), which wraps transformers' class.
"""

from __future__ import annotations

from torch import nn

from stc_stream.towers import siglip
from stc_stream.towers.tower import Entry, TowerSpec, stack, submodule


def resembles(module: nn.Module) -> bool:
    """Say whether `module` has an encoder of layers, and embeddings with a class token."""
    layers = getattr(getattr(module, "encoder", None), "layers", None)
    embeddings = getattr(module, "embeddings", None)
    return isinstance(layers, nn.ModuleList) and hasattr(embeddings, "class_embedding")


def read(module: nn.Module, path: str) -> TowerSpec:
    """Read a tower that resembles CLIP's.

    Raises:
        Unreadable: a part is missing.
    """
    return TowerSpec(
        family="CLIP",
        path=path,
        entries=(Entry(submodule(module, "encoder", None)),),
        layers=stack(module, "encoder.layers", siglip.read_layer),
        embedding=submodule(module, "embeddings.patch_embedding", nn.Conv2d),
        prefix_tokens=1,
    )
