"""DINOv2, with and without registers: a class token, layer scale, an MLP or SwiGLU."""

from __future__ import annotations

from torch import nn

from stc_stream.towers.tower import (
    Entry,
    Projection,
    TowerLayer,
    TowerSpec,
    chain,
    dropout,
    first_setting,
    first_submodule,
    learned_tokens,
    reject_unread_weights,
    stack,
    submodule,
)

_ATTENTION = {"attention", "output", "q_proj", "k_proj", "v_proj", "o_proj"}


def resembles(module: nn.Module) -> bool:
    """Say whether `module` embeds patches and has an encoder of layers, unlike InternViT's."""
    layers = getattr(getattr(module, "encoder", None), "layer", None)
    patches = getattr(getattr(module, "embeddings", None), "patch_embeddings", None)
    return (
        isinstance(layers, nn.ModuleList)
        and isinstance(patches, nn.Module)
        and not any(hasattr(layer, "layernorm_before") for layer in layers)
    )


def read(module: nn.Module, path: str) -> TowerSpec:
    """Read a tower that resembles DINOv2's.

    Raises:
        Unreadable: a part is missing.
    """
    registers = learned_tokens(module, "embeddings.register_tokens", optional=True)
    return TowerSpec(
        family="DINOv2",
        path=path,
        # transformers 5.0 tells the encoder nothing of attention maps that the model is asked for.
        entries=(Entry(submodule(module, "encoder", None)), Entry(module)),
        layers=stack(module, "encoder.layer", read_layer),
        embedding=submodule(module, "embeddings.patch_embeddings.projection", nn.Conv2d),
        prefix_tokens=learned_tokens(module, "embeddings.cls_token") + registers,
    )


def read_layer(layer: nn.Module, where: str) -> TowerLayer:
    """Read a layer of DINOv2 or DINOv3."""
    scaled = {"norm1", "attention", "layer_scale1", "norm2", "mlp", "layer_scale2"}
    reject_unread_weights(layer, scaled, where)
    reject_unread_weights(submodule(layer, "attention", None, where), _ATTENTION, where)
    attention = first_submodule(layer, ("attention.attention", "attention"), None, where)
    query, key, value = (
        Projection(
            first_submodule(
                layer, (f"attention.attention.{old}", f"attention.{new}"), nn.Linear, where
            )
        )
        for old, new in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))
    )
    outputs = ("attention.output.dense", "attention.o_proj")
    return TowerLayer(
        module=layer,
        attention=attention,
        norm1=submodule(layer, "norm1", None, where),
        query=query,
        key=key,
        value=value,
        output=chain(
            first_submodule(layer, outputs, nn.Linear, where),
            submodule(layer, "layer_scale1", None, where),
        ),
        norm2=submodule(layer, "norm2", None, where),
        mlp=chain(
            submodule(layer, "mlp", None, where), submodule(layer, "layer_scale2", None, where)
        ),
        heads=first_setting(attention, ("num_attention_heads", "num_heads"), int, where),
        scale=first_setting(attention, ("scaling",), float, where),
        dropout=dropout(layer),
    )
