"""algorithm.md, section 1, said plainly for any family: frame by frame, in float64, no op of ours.

The tower's own encoder runs, with each layer's forward replaced by the statement: so what comes
back is all that the tower makes of it, pooled outputs and collected states included.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from towers.families import Family, Frame, Parts

from stc_stream import CacherConfig

Reference = tuple[Tensor, Tensor, Tensor, Tensor]


class Statement:
    """A tower that runs the algorithm, and what it keeps of each stream."""

    def __init__(self, family: Family, tower: nn.Module, config: CacherConfig) -> None:
        self.family, self.config = family, config
        self.tower = copy.deepcopy(tower).double()
        self.frames: dict[str, int] = {}
        self.references: dict[tuple[str, int], Reference] = {}
        self.margin = math.inf
        self.computed = 0
        for number, layer in enumerate(family.layers_of(self.tower)):
            in_tuple = "output_attentions" in layer.forward.__code__.co_varnames
            layer.forward = partial(self._layer, number, family.parts(layer), in_tuple)

    def run(self, frame: Frame, stream: str) -> dict[str, Tensor]:
        """Return what the tower gives for a stream's next frame."""
        self.stream, self.frame = stream, self.frames.get(stream, 0)
        self.frames[stream] = self.frame + 1
        return self.family.run(self.tower, [frame])

    def _layer(
        self,
        number: int,
        parts: Parts,
        in_tuple: bool,
        hidden_states: Tensor,
        *_: object,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        cu_seqlens: Tensor | None = None,
        **__: object,
    ) -> Tensor | tuple[Tensor]:
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        windows = [0, len(x)] if cu_seqlens is None else cu_seqlens.tolist()
        place = [sum(start <= t for start in windows[1:]) for t in range(len(x))]
        attend = partial(_attend, parts, self._angles(position_embeddings, len(x)), place)
        where = (self.stream, number)
        if self.frame % self.config.refresh_interval == 0:
            output = self._refresh(parts, x, where, attend)
        else:
            output = self._select(parts, x, where, attend)
        output = output.view_as(hidden_states)
        return (output,) if in_tuple else output

    def _refresh(
        self, parts: Parts, x: Tensor, where: tuple[str, int], attend: Callable[..., Tensor]
    ) -> Tensor:
        n = parts.norm1(x)
        key, value = parts.key(n), parts.value(n)
        attention = attend(list(range(len(x))), parts.query(n), key, value)
        mlp = parts.mlp(parts.norm2(x + attention))
        self.references[where] = (key, value, attention, mlp)
        self.computed += len(x)
        return x + attention + mlp

    def _select(
        self, parts: Parts, x: Tensor, where: tuple[str, int], attend: Callable[..., Tensor]
    ) -> Tensor:
        key_ref, value_ref, attention_ref, mlp_ref = self.references[where]
        n = parts.norm1(x)
        key = parts.key(n)
        chosen = self._chosen(key, key_ref)
        value, attention, mlp = value_ref.clone(), attention_ref.clone(), mlp_ref.clone()
        value[chosen] = parts.value(n[chosen])
        attention[chosen] = attend(chosen, parts.query(n[chosen]), key, value)
        h = x + attention
        mlp[chosen] = parts.mlp(parts.norm2(h[chosen]))
        self.computed += len(chosen)
        return h + mlp

    def _chosen(self, key: Tensor, reference: Tensor) -> list[int]:
        prefix = self.family.prefix
        scores = {
            t: float(a @ b / (a.norm().clamp(min=1e-8) * b.norm().clamp(min=1e-8)))
            for t, (a, b) in enumerate(zip(key, reference, strict=True))
            if t >= prefix
        }
        k = max(1, math.floor(len(scores) * self.config.update_ratio))
        if self.config.selection is not None:
            patches = self.config.selection.choose(key[None, prefix:], reference[None, prefix:], k)
            return [*range(prefix), *(prefix + patch for patch in patches[0].tolist())]
        order = sorted(scores, key=scores.__getitem__)
        if k < len(order):
            self.margin = min(self.margin, scores[order[k]] - scores[order[k - 1]])
        return [*range(prefix), *sorted(order[:k])]

    def _angles(
        self, embeddings: tuple[Tensor, Tensor] | None, tokens: int
    ) -> tuple[Tensor, Tensor] | None:
        """Return cos and sin of every token; those before the patches are not turned."""
        if embeddings is None:
            return None
        cos, sin = (table.double() for table in embeddings)
        still = torch.zeros(tokens - len(cos), cos.shape[1], dtype=torch.float64)
        return torch.cat([still + 1, cos]), torch.cat([still, sin])


def _attend(
    parts: Parts,
    angles: tuple[Tensor, Tensor] | None,
    window: Sequence[int],
    chosen: list[int],
    query: Tensor,
    key: Tensor,
    value: Tensor,
) -> Tensor:
    query, key = parts.query_norm(query), parts.key_norm(key)
    places = torch.tensor(window)
    apart = places[chosen][:, None] != places[None]
    width = query.shape[1] // parts.heads
    context = torch.empty_like(query)
    for start in range(0, query.shape[1], width):
        head = slice(start, start + width)
        q, k = query[:, head], key[:, head]
        if angles is not None:
            q = _turn(q, angles[0][chosen], angles[1][chosen])
            k = _turn(k, *angles)
        logits = (q @ k.T / math.sqrt(width)).masked_fill(apart, -math.inf)
        context[:, head] = logits.softmax(-1) @ value[:, head]
    return parts.output(context)


def _turn(tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of channels i and i + D/2 by its angle."""
    turned, half = torch.empty_like(tokens), tokens.shape[1] // 2
    for i in range(half):
        a, b = tokens[:, i], tokens[:, i + half]
        turned[:, i] = a * cos[:, i] - b * sin[:, i]
        turned[:, i + half] = b * cos[:, i + half] + a * sin[:, i + half]
    return turned
