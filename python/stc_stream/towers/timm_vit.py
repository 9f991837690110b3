"""timm's VisionTransformer with its plain block: fused q, k and v, and what it may have beside.

Not its other blocks: post-norm, parallel, with relative positions, rotary, gated or differential.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from stc_stream.towers.tower import (
    Branch,
    Entry,
    Projection,
    TowerLayer,
    TowerSpec,
    chain,
    dropout,
    optional_submodule,
    reject_unread_weights,
    setting,
    stack,
    submodule,
)

_ATTENTION = {"qkv", "q_norm", "k_norm", "norm", "proj"}
_BLOCK = {"norm1", "attn", "ls1", "norm2", "mlp", "ls2"}
_METHODS = ("forward_features", "forward_intermediates")


def resembles(module: nn.Module) -> bool:
    """Say whether `module` embeds patches, has blocks, and gives features by timm's method."""
    return (
        isinstance(getattr(module, "blocks", None), nn.Sequential | nn.ModuleList)
        and isinstance(getattr(module, "patch_embed", None), nn.Module)
        and callable(getattr(module, "forward_features", None))
    )


def read(module: nn.Module, path: str) -> TowerSpec:
    """Read a tower that resembles timm's VisionTransformer.

    Raises:
        Unreadable: a part is missing.
    """
    # Other patches each time: what a layer that drops out would be.
    dropped = float(getattr(getattr(module, "patch_drop", None), "prob", 0.0))
    layers = stack(module, "blocks", _layer)
    return TowerSpec(
        family="timm ViT",
        path=path,
        entries=tuple(Entry(module, name) for name in _METHODS if hasattr(module, name)),
        layers=tuple(replace(layer, dropout=max(layer.dropout, dropped)) for layer in layers),
        embedding=submodule(module, "patch_embed.proj", nn.Conv2d),
        prefix_tokens=setting(module, "num_prefix_tokens", int),
    )


def _layer(layer: nn.Module, where: str) -> TowerLayer:
    attention = submodule(layer, "attn", None, where)
    reject_unread_weights(layer, _BLOCK, where)
    reject_unread_weights(attention, _ATTENTION, where)
    qkv = submodule(layer, "attn.qkv", nn.Linear, where)
    heads = setting(attention, "num_heads", int, where)
    # The post-norm block has the same parts but for these.
    scales = [submodule(layer, name, None, where) for name in ("ls1", "ls2")]
    return TowerLayer(
        module=layer,
        attention=attention,
        norm1=submodule(layer, "norm1", None, where),
        query=Projection(qkv, 0, 3),
        key=Projection(qkv, 1, 3),
        value=Projection(qkv, 2, 3),
        output=chain(
            optional_submodule(attention, "norm"),
            submodule(layer, "attn.proj", nn.Linear, where),
            scales[0],
        ),
        norm2=submodule(layer, "norm2", None, where),
        mlp=chain(submodule(layer, "mlp", None, where), scales[1]),
        heads=heads,
        scale=setting(attention, "scale", float, where),
        query_norm=_by_head(optional_submodule(attention, "q_norm"), heads),
        key_norm=_by_head(optional_submodule(attention, "k_norm"), heads),
        dropout=dropout(layer),
    )


def _by_head(norm: nn.Module | None, heads: int) -> Branch | None:
    if norm is None:
        return None

    def run(tokens: Tensor) -> Tensor:
        normed: Tensor = norm(tokens.unflatten(-1, (heads, -1)))
        return normed.flatten(-2)

    return run
