"""What the encoder of a tower is called with, and what it calls its layers with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from stc_stream.towers import TowerSpec

WITHOUT_EFFECT = frozenset(
    {
        "batch_num_images",
        "image_sizes",
        "interpolate_pos_encoding",
        "max_seqlen",
        "num_items_in_batch",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "use_cache",
        "vision_aspect_ratio",
        "vision_feature_layer",
        "vision_feature_select_strategy",
    }
)
"""What models hand down to their layers that no layer computes with, or that `cu_seqlens` says."""


@dataclass(frozen=True)
class FramePlace:
    """Where a frame lies in the tokens of a batch.

    Attributes:
        rows: in the tokens' first dimension: one of [B, T, C], T of packed [sum of T, C].
        start: its first token in tables and segments; 0 where all frames share them.
        tokens: of the frame (T).
    """

    rows: slice
    start: int
    tokens: int


@dataclass(frozen=True, eq=False)
class LayerCall:
    """What an encoder passes to a layer.

    Attributes:
        hidden: the tokens, [B, T, C], or packed [sum of T, C].
        rotary: cos and sin of each patch or token, [T, D] or packed [sum of T, D]; None: none.
        segments: where windows of attention start in packed tokens, int32, the end included.
        args, kwargs: all arguments, as they were passed.
        name: of the tokens in `kwargs`; None: they are the first of `args`.
    """

    hidden: Tensor
    rotary: tuple[Tensor, Tensor] | None
    segments: Tensor | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str | None

    @classmethod
    def read(
        cls, number: int, takes: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> LayerCall:
        """Read a call by the names that encoders of transformers and timm use.

        Args:
            number: of the layer, for errors.
            takes: names of what it takes by position.
            args, kwargs: of the call.

        Raises:
            TypeError: no tokens. ValueError: an attention mask, or an argument that is neither
                empty nor known.
        """
        rest = {
            takes[place]
            if place < len(takes) and takes[place] not in kwargs
            else f"argument {place}": value
            for place, value in enumerate(args)
        }
        rest.update(kwargs)
        names = (*takes[:1], "hidden_states", "x")
        name = next(iter(rest)) if args else next((name for name in names if name in rest), "")
        hidden = rest.pop(name, None)
        if not isinstance(hidden, Tensor):
            raise TypeError(f"layer {number} of the tower was called without tokens")
        for mask in ("attention_mask", "attn_mask"):
            if rest.pop(mask, None) is not None:
                raise ValueError(
                    "the attention mask of the tower's layers must be None while a Cacher is "
                    "attached, but the tower's encoder made one"
                )
        rotary = rest.pop("position_embeddings", None)
        segments = rest.get("cu_seqlens")
        if isinstance(segments, Tensor):
            del rest["cu_seqlens"]
        _refuse_unknown(number, rest)
        return cls(
            hidden,
            None if rotary is None else _pair(rotary),
            segments,
            args,
            kwargs,
            None if args else name,
        )

    def of_frame(self, frame: FramePlace) -> LayerCall | None:
        """Return the call as it would be of one frame alone; None: not all of it can be cut."""
        rotary, segments = self.rotary, self.segments
        if rotary is not None:
            cos, sin = (self._cut(table, frame) for table in rotary)
            if cos is None or sin is None:
                return None
            rotary = cos, sin
        if segments is not None:
            inside = (segments >= frame.start) & (segments <= frame.start + frame.tokens)
            segments = segments[inside] - frame.start

        def cut(value: Any) -> Any:
            if isinstance(value, Tensor) and value is self.segments:
                return segments
            pair = isinstance(value, tuple | list) and len(value) == 2
            if pair and self.rotary is not None and value[0] is self.rotary[0]:
                return rotary
            return value

        return replace(
            self,
            hidden=self.hidden[frame.rows],
            rotary=rotary,
            segments=segments,
            args=tuple(map(cut, self.args)),
            kwargs={name: cut(value) for name, value in self.kwargs.items()},
        )

    def again(self, function: Callable[..., Any], hidden: Tensor) -> Any:
        """Call a function in the same way, but with other tokens."""
        if self.name is None:
            return function(hidden, *self.args[1:], **self.kwargs)
        return function(*self.args, **{**self.kwargs, self.name: hidden})

    def _cut(self, table: Tensor, frame: FramePlace) -> Tensor | None:
        """Return what of a rotary table one frame has; None: it has an unknown shape."""
        batch, packed = self.hidden.shape[0], self.hidden.dim() == 2
        if not packed and table.dim() == 2:
            return table if table.shape[0] <= frame.tokens else None
        along = table.dim() - 2 if packed else 0
        size = table.shape[along]
        if size == batch:
            rows = range(batch)[frame.rows]
            return table.narrow(along, rows.start, len(rows))
        return table if size == (frame.tokens if packed else 1) else None


def read_grids(
    tower: TowerSpec, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[tuple[int, int, int]] | None:
    """Return frames, rows and columns of each grid of packed frames; None: frames are not packed.

    Args:
        tower: the tower.
        signature: of the method that was called.
        args, kwargs: what it was called with.

    Raises:
        ValueError: something that a compressed forward can't do: an attention mask, attention
            maps, causal attention, dropout; or no grids.
    """
    named = {**dict(zip(signature.parameters, args, strict=False)), **kwargs}
    for mask in ("attention_mask", "attn_mask"):
        if named.get(mask) is not None:
            raise ValueError(f"{mask} must be None while a Cacher is attached")
    wants_attentions = named.get("output_attentions")
    if wants_attentions is None:
        settings = getattr(tower.encoder, "config", None)
        wants_attentions = getattr(settings, "output_attentions", False)
    if wants_attentions:
        raise ValueError(
            "output_attentions must be False while a Cacher is attached: "
            "a selective frame has no whole attention map"
        )
    if named.get("is_causal"):
        raise ValueError("is_causal must be False while a Cacher is attached")
    for number, layer in enumerate(tower.layers):
        if layer.module.training and layer.dropout > 0:
            raise ValueError(
                f"the tower must not drop out while a Cacher is attached, but layer {number} "
                f"is in training mode with dropout {layer.dropout}: call eval()"
            )
    if not tower.packed:
        return None
    grids = named.get("grid_thw")
    if not isinstance(grids, Tensor):
        raise ValueError("grid_thw must be given while a Cacher is attached")
    return [(int(t), int(h), int(w)) for t, h, w in grids.tolist()]


def _refuse_unknown(number: int, arguments: dict[str, object]) -> None:
    for name, value in arguments.items():
        empty = value is None or value is False or (isinstance(value, tuple | list) and not value)
        if not empty and name not in WITHOUT_EFFECT:
            raise ValueError(
                f"layer {number} of the tower was called with {name}, a {type(value).__name__}, "
                "which a Cacher would leave out: call the tower without it, or detach the Cacher"
            )


def _pair(rotary: object) -> tuple[Tensor, Tensor]:
    if isinstance(rotary, tuple | list) and len(rotary) == 2:
        cos, sin = rotary
        if isinstance(cos, Tensor) and isinstance(sin, Tensor):
            return cos, sin
    raise TypeError(
        f"position_embeddings of the tower's layers must be a tuple of cos and sin, "
        f"but is a {type(rotary).__name__}"
    )
