"""SigLIP and SigLIP 2 of fixed size: patches only, no class token, separate q, k and v.

Also LLaVA's own SigLIP tower class (StreamForest), which has the same parts.
"""

from __future__ import annotations

from torch import nn

from stc_stream.towers.tower import (
    Entry,
    Projection,
    TowerLayer,
    TowerSpec,
    Unreadable,
    dropout,
    reject_unread_weights,
    returns_tuple,
    setting,
    stack,
    submodule,
)


def resembles(module: nn.Module) -> bool:
    """Say whether `module` has a tower's two parts, embeddings and an encoder of layers."""
    layers = getattr(getattr(module, "encoder", None), "layers", None)
    embeddings = getattr(module, "embeddings", None)
    return isinstance(layers, nn.ModuleList) and not hasattr(embeddings, "class_embedding")


def read(module: nn.Module, path: str) -> TowerSpec:
    """Read a tower that resembles SigLIP's.

    Raises:
        Unreadable: a part is missing.
    """
    submodule(module, "embeddings", None)
    embedding = getattr(module.embeddings, "patch_embedding", None)
    if isinstance(embedding, nn.Linear):
        raise Unreadable(
            "takes images of any size as padded patches (NaFlex), which have no fixed places to "
            "compare: use a checkpoint of fixed size"
        )
    if not isinstance(embedding, nn.Conv2d):
        raise Unreadable(
            "embeds no image patches (embeddings.patch_embedding is not a torch.nn.Conv2d)"
        )
    layers = stack(module, "encoder.layers", read_layer)
    return TowerSpec(
        "SigLIP", path, (Entry(submodule(module, "encoder", None)),), layers, embedding
    )


def read_layer(layer: nn.Module, where: str) -> TowerLayer:
    """Read a layer of SigLIP or CLIP."""
    attention = submodule(layer, "self_attn", None, where)
    reject_unread_weights(layer, {"layer_norm1", "self_attn", "layer_norm2", "mlp"}, where)
    reject_unread_weights(attention, {"q_proj", "k_proj", "v_proj", "out_proj"}, where)
    query, key, value = (
        Projection(submodule(layer, f"self_attn.{name}_proj", nn.Linear, where)) for name in "qkv"
    )
    return TowerLayer(
        module=layer,
        attention=attention,
        norm1=submodule(layer, "layer_norm1", None, where),
        query=query,
        key=key,
        value=value,
        output=submodule(layer, "self_attn.out_proj", nn.Linear, where),
        norm2=submodule(layer, "layer_norm2", None, where),
        mlp=submodule(layer, "mlp", None, where),
        heads=setting(attention, "num_heads", int, where),
        scale=setting(attention, "scale", float, where),
        dropout=dropout(layer),
        returns_tuple=returns_tuple(layer),
    )
