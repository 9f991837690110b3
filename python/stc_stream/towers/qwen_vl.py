"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: packed frames, fused q, k and v, rotary positions, windows.

Two pictures make a temporal patch, which is a frame here. Qwen2.5-VL's layers attend in windows,
but for some. What later Qwens and others have in common with these is read as well.
"""

from __future__ import annotations

import inspect

from torch import nn

from stc_stream.towers.tower import (
    Entry,
    Projection,
    TowerLayer,
    TowerSpec,
    dropout,
    reject_unread_weights,
    setting,
    stack,
    submodule,
)


def resembles(module: nn.Module) -> bool:
    """Say whether `module` has blocks, and is called with the grids of its frames."""
    # The class's: a Cacher that is attached already puts a forward of its own in front of it.
    return (
        isinstance(getattr(module, "blocks", None), nn.ModuleList)
        and "grid_thw" in inspect.signature(type(module).forward).parameters
    )


def read(module: nn.Module, path: str) -> TowerSpec:
    """Read a tower that resembles Qwen2-VL's.

    Raises:
        Unreadable: a part is missing.
    """
    layers = stack(module, "blocks", _layer)
    whole = getattr(module, "fullatt_block_indexes", range(len(layers)))
    return TowerSpec(
        family="Qwen-VL",
        path=path,
        entries=(Entry(module),),
        layers=layers,
        embedding=submodule(module, "patch_embed.proj", None),
        packed=True,
        windowed=not set(range(len(layers))) <= set(whole),
    )


def _layer(layer: nn.Module, where: str) -> TowerLayer:
    attention = submodule(layer, "attn", None, where)
    reject_unread_weights(layer, {"norm1", "attn", "norm2", "mlp"}, where)
    reject_unread_weights(attention, {"qkv", "proj"}, where)
    qkv = submodule(layer, "attn.qkv", nn.Linear, where)
    return TowerLayer(
        module=layer,
        attention=attention,
        norm1=submodule(layer, "norm1", None, where),
        query=Projection(qkv, 0, 3),
        key=Projection(qkv, 1, 3),
        value=Projection(qkv, 2, 3),
        output=submodule(layer, "attn.proj", nn.Linear, where),
        norm2=submodule(layer, "norm2", None, where),
        mlp=submodule(layer, "mlp", None, where),
        heads=setting(attention, "num_heads", int, where),
        scale=setting(attention, "scaling", float, where),
        dropout=dropout(layer),
    )
