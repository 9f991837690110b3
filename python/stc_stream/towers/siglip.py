"""SigLIP: patches only, no class token, separate q, k, v and a learned position embedding.

Read by structure (transformers 5: `embeddings`, `encoder.layers`), so a tower nested in another
model, or of a class of another name, is recognised as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import nn

from stc_stream.towers.tower import TowerLayer


def resembles(module: nn.Module) -> bool:
    """Say whether `module` has a tower's two parts, embeddings and an encoder of layers."""
    layers = getattr(getattr(module, "encoder", None), "layers", None)
    return isinstance(layers, nn.ModuleList) and hasattr(module, "embeddings")


def refusal(module: nn.Module) -> str | None:
    """Say what keeps a module that resembles a tower from being SigLIP's; None: nothing."""
    embeddings = cast(nn.Module, module.embeddings)
    if not isinstance(getattr(embeddings, "patch_embedding", None), nn.Conv2d):
        return "embeds no image patches (embeddings.patch_embedding is not a Conv2d)"
    if hasattr(embeddings, "class_embedding"):
        return "has a class token (embeddings.class_embedding), as CLIP has"
    layers = list(_modules(module))
    if not layers:
        return "has no layers (encoder.layers is empty)"
    for number, layer in enumerate(layers):
        for name in ("layer_norm1", "layer_norm2", "mlp"):
            if not isinstance(getattr(layer, name, None), nn.Module):
                return f"has no {name} in layer {number}"
        attention = getattr(layer, "self_attn", None)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            if not isinstance(getattr(attention, name, None), nn.Linear):
                return f"has no torch.nn.Linear as self_attn.{name} in layer {number}"
        for name in ("num_heads", "scale"):
            if not hasattr(attention, name):
                return f"has no self_attn.{name} in layer {number}"
    return None


def encoder(module: nn.Module) -> nn.Module:
    """Return the module that calls the layers."""
    return cast(nn.Module, module.encoder)


def layers(module: nn.Module) -> tuple[TowerLayer, ...]:
    """Read the layers of a tower that `refusal` has passed."""
    return tuple(_layer(layer) for layer in _modules(module))


def _modules(module: nn.Module) -> Iterable[nn.Module]:
    return cast(nn.ModuleList, encoder(module).layers)


def _layer(layer: nn.Module) -> TowerLayer:
    attention = cast(nn.Module, layer.self_attn)
    return TowerLayer(
        module=layer,
        attention=attention,
        norm1=cast(nn.Module, layer.layer_norm1),
        query=cast(nn.Linear, attention.q_proj),
        key=cast(nn.Linear, attention.k_proj),
        value=cast(nn.Linear, attention.v_proj),
        output=cast(nn.Linear, attention.out_proj),
        norm2=cast(nn.Module, layer.layer_norm2),
        mlp=cast(nn.Module, layer.mlp),
        heads=cast(int, attention.num_heads),
        scale=float(cast(float, attention.scale)),
        attention_dropout=float(getattr(attention, "dropout", 0.0)),
    )
