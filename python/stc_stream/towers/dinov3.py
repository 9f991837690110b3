"""DINOv3: DINOv2's layers with rotary positions, behind a class token and registers."""

from __future__ import annotations

from torch import nn

from stc_stream.towers import dinov2
from stc_stream.towers.tower import Entry, TowerSpec, learned_tokens, stack, submodule


def resembles(module: nn.Module) -> bool:
    """Say whether `module` has rotary embeddings of patches, and layers beside or below them."""
    return isinstance(getattr(module, "rope_embeddings", None), nn.Module) and isinstance(
        getattr(_encoder(module), "layer", None), nn.ModuleList
    )


def read(module: nn.Module, path: str) -> TowerSpec:
    """Read a tower that resembles DINOv3's.

    Raises:
        Unreadable: a part is missing.
    """
    encoder = _encoder(module)
    registers = learned_tokens(module, "embeddings.register_tokens", optional=True)
    return TowerSpec(
        family="DINOv3",
        path=path,
        entries=tuple(Entry(each) for each in dict.fromkeys((encoder, module))),
        layers=stack(encoder, "layer", dinov2.read_layer),
        embedding=submodule(module, "embeddings.patch_embeddings", nn.Conv2d),
        prefix_tokens=learned_tokens(module, "embeddings.cls_token") + registers,
    )


def _encoder(module: nn.Module) -> nn.Module:
    """Return what holds the layers: the model itself, in transformers 5.0, or its `model`."""
    inner = getattr(module, "model", None)
    return inner if isinstance(inner, nn.Module) else module
