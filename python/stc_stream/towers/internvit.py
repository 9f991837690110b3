"""InternViT as transformers ships it (InternVL): a class token, layer scale, norms of q and k."""

from __future__ import annotations

from torch import Tensor, nn

from stc_stream.towers.tower import (
    Branch,
    Entry,
    Projection,
    TowerLayer,
    TowerSpec,
    chain,
    dropout,
    learned_tokens,
    optional_submodule,
    reject_unread_weights,
    setting,
    stack,
    submodule,
)

_ATTENTION = {"q_proj", "k_proj", "v_proj", "projection_layer", "q_norm", "k_norm"}
_LAYER = {"layernorm_before", "attention", "lambda_1", "layernorm_after", "mlp", "lambda_2"}


def resembles(module: nn.Module) -> bool:
    """Say whether `module` embeds patches and has an encoder of layers with a norm before."""
    layers = getattr(getattr(module, "encoder", None), "layer", None)
    patches = getattr(getattr(module, "embeddings", None), "patch_embeddings", None)
    return (
        isinstance(layers, nn.ModuleList)
        and isinstance(patches, nn.Module)
        and any(hasattr(layer, "layernorm_before") for layer in layers)
    )


def read(module: nn.Module, path: str) -> TowerSpec:
    """Read a tower that resembles InternViT's.

    Raises:
        Unreadable: a part is missing.
    """
    return TowerSpec(
        family="InternViT",
        path=path,
        # The model does not tell its encoder of the attention maps that it is asked for.
        entries=(Entry(submodule(module, "encoder", None)), Entry(module)),
        layers=stack(module, "encoder.layer", _layer),
        embedding=submodule(module, "embeddings.patch_embeddings.projection", nn.Conv2d),
        prefix_tokens=learned_tokens(module, "embeddings.cls_token"),
    )


def _layer(layer: nn.Module, where: str) -> TowerLayer:
    attention = submodule(layer, "attention", None, where)
    reject_unread_weights(layer, _LAYER, where)
    reject_unread_weights(attention, _ATTENTION, where)
    query, key, value = (
        Projection(submodule(layer, f"attention.{name}_proj", nn.Linear, where)) for name in "qkv"
    )
    return TowerLayer(
        module=layer,
        attention=attention,
        norm1=submodule(layer, "layernorm_before", None, where),
        query=query,
        key=key,
        value=value,
        output=chain(
            submodule(layer, "attention.projection_layer", nn.Linear, where),
            _layer_scale(layer, "lambda_1", where),
        ),
        norm2=submodule(layer, "layernorm_after", None, where),
        mlp=chain(submodule(layer, "mlp", None, where), _layer_scale(layer, "lambda_2", where)),
        heads=setting(attention, "num_heads", int, where),
        scale=setting(attention, "scale", float, where),
        query_norm=optional_submodule(attention, "q_norm"),
        key_norm=optional_submodule(attention, "k_norm"),
        dropout=dropout(layer),
    )


def _layer_scale(layer: nn.Module, name: str, where: str) -> Branch:
    setting(layer, name, lambda scale: scale, where)

    def scale(tokens: Tensor) -> Tensor:
        factors: Tensor = getattr(layer, name)
        return factors * tokens

    return scale
