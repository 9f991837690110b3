"""A tower with a Cacher against algorithm.md said plainly: loops, float64, none of our ops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from transformers import SiglipVisionModel

from stc_stream import CacherConfig, attach_cacher

STREAMS = ["door", "yard", "door", "door", "yard", "yard"] * 2
"""Twelve frames of two interleaved streams."""

CLEAR = 1e-5
"""How far apart the last chosen and the first reused token must be for float32 to agree."""


@dataclass
class Statement:
    """The algorithm frame by frame, and what it keeps."""

    tower: SiglipVisionModel
    config: CacherConfig
    frames: dict[str, int] = field(default_factory=dict)
    references: dict[tuple[str, int], tuple[Tensor, ...]] = field(default_factory=dict)
    margin: float = math.inf

    def run(self, image: Tensor, stream: str) -> tuple[list[Tensor], Tensor]:
        """Return one frame's hidden states, the embeddings first, and its pooled output."""
        tower = self.tower
        x = tower.embeddings(image[None].double())[0]
        t = self.frames.get(stream, 0)
        self.frames[stream] = t + 1
        hidden = [x]
        for number, layer in enumerate(tower.encoder.layers):
            refresh = t % self.config.refresh_interval == 0
            x = (self.refresh if refresh else self.select)(layer, x, (stream, number))
            hidden.append(x)
        return hidden, tower.head(tower.post_layernorm(x)[None])[0]

    def refresh(self, layer: torch.nn.Module, x: Tensor, where: tuple[str, int]) -> Tensor:
        n = layer.layer_norm1(x)
        key, value = layer.self_attn.k_proj(n), layer.self_attn.v_proj(n)
        attention = attend(layer.self_attn, layer.self_attn.q_proj(n), key, value)
        mlp = layer.mlp(layer.layer_norm2(x + attention))
        self.references[where] = (key, value, attention, mlp)
        return x + attention + mlp

    def select(self, layer: torch.nn.Module, x: Tensor, where: tuple[str, int]) -> Tensor:
        key_ref, value_ref, attention_ref, mlp_ref = self.references[where]
        n = layer.layer_norm1(x)
        key = layer.self_attn.k_proj(n)
        scores = [similarity(self.config.metric, a, b) for a, b in zip(key, key_ref, strict=True)]
        k = max(1, math.floor(len(scores) * self.config.update_ratio))
        order = sorted(range(len(scores)), key=scores.__getitem__)
        chosen = sorted(order[:k])
        if k < len(order):
            self.margin = min(self.margin, scores[order[k]] - scores[order[k - 1]])
        value = value_ref.clone()
        value[chosen] = layer.self_attn.v_proj(n[chosen])
        attention, mlp = attention_ref.clone(), mlp_ref.clone()
        attention[chosen] = attend(layer.self_attn, layer.self_attn.q_proj(n[chosen]), key, value)
        h = x + attention
        mlp[chosen] = layer.mlp(layer.layer_norm2(h[chosen]))
        return h + mlp


def attend(attention: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    heads, width = attention.num_heads, query.shape[1] // attention.num_heads
    context = torch.empty_like(query)
    for head in range(heads):
        at = slice(head * width, (head + 1) * width)
        weights = (query[:, at] @ key[:, at].T / math.sqrt(width)).softmax(-1)
        context[:, at] = weights @ value[:, at]
    return attention.out_proj(context)


def similarity(metric: str, a: Tensor, b: Tensor) -> float:
    if metric == "cosine":
        return float(a @ b / (a.norm().clamp(min=1e-8) * b.norm().clamp(min=1e-8)))
    if metric == "dot":
        return float(a @ b)
    return -float((a - b).norm(p=1 if metric == "l1" else 2))


@torch.no_grad()
def stated(
    make_tower: Callable[..., SiglipVisionModel],
    make_clip: Callable[..., Tensor],
    config: CacherConfig,
    streams: Sequence[str],
    seed: int,
) -> tuple[SiglipVisionModel, Tensor, list[Tensor], Tensor]:
    """Return a tower, a clip, and the statement's hidden states and pooled outputs of it.

    Drawn anew until every choice is clear, so that none depends on how float32 rounds.
    """
    for draw in itertools.count(seed):
        tower, clip = make_tower(seed=draw), make_clip(len(streams), seed=draw)
        statement = Statement(tower.double(), config)
        outputs = [statement.run(*row) for row in zip(clip, streams, strict=True)]
        tower.float()
        if statement.margin > CLEAR:
            break
    hidden = [torch.stack(states) for states in zip(*(h for h, _ in outputs), strict=True)]
    return tower, clip, hidden, torch.stack([pooled for _, pooled in outputs])


def run(
    tower: SiglipVisionModel,
    config: CacherConfig,
    clip: Tensor,
    streams: list[str],
    sizes: list[int],
) -> tuple[list[Tensor], Tensor]:
    """Return hidden states and pooled outputs of the clip, in batches of the given sizes."""
    assert sum(sizes) == len(streams)
    outputs = []
    with attach_cacher(tower, config) as cacher, torch.no_grad():
        for rows in torch.arange(len(streams)).split(sizes):
            with cacher.streams([streams[row] for row in rows]):
                outputs.append(tower(clip[rows], output_hidden_states=True))
    hidden = zip(*(output.hidden_states for output in outputs), strict=True)
    return [torch.cat(states) for states in hidden], torch.cat([o.pooler_output for o in outputs])


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("interval", [1, 2, 4])
def test_equals_the_statement(make_tower, make_clip, seed, interval, ratio):
    config = CacherConfig.paper(update_ratio=ratio, refresh_interval=interval)
    tower, clip, hidden, pooled = stated(make_tower, make_clip, config, STREAMS, seed)
    for sizes in ([1] * 12, [12], [5, 1, 6], [2, 3, 7]):
        ours, ours_pooled = run(tower, config, clip, STREAMS, sizes)
        assert len(ours) == len(hidden) == 4
        for state, expected in zip(ours, hidden, strict=True):
            torch.testing.assert_close(state.double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours_pooled.double(), pooled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("metric", ["dot", "l1", "l2"])
def test_equals_the_statement_in_every_metric(make_tower, make_clip, seed, metric):
    config = CacherConfig.paper(metric=metric)
    tower, clip, hidden, _ = stated(make_tower, make_clip, config, STREAMS, seed)
    for sizes in ([1] * 12, [12]):
        ours, _ = run(tower, config, clip, STREAMS, sizes)
        torch.testing.assert_close(ours[-1].double(), hidden[-1], rtol=1e-5, atol=1e-5)


def test_one_stream_by_default(make_tower, make_clip, seed):
    config = CacherConfig.paper(refresh_interval=3)
    tower, clip, hidden, _ = stated(make_tower, make_clip, config, ["only"] * 8, seed)
    with attach_cacher(tower, config), torch.no_grad():
        ours = torch.cat([tower(clip[:5]).last_hidden_state, tower(clip[5:]).last_hidden_state])
    expected = tower.post_layernorm(hidden[-1].float())
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("interval", [1, 3])
def test_everything_recomputed_is_dense(make_tower, make_clip, interval):
    tower, clip = make_tower(), make_clip(6)
    with torch.no_grad():
        dense = tower(clip)
        with attach_cacher(tower, CacherConfig.paper(update_ratio=1.0, refresh_interval=interval)):
            ours = tower(clip)
    torch.testing.assert_close(
        ours.last_hidden_state, dense.last_hidden_state, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(ours.pooler_output, dense.pooler_output, rtol=1e-5, atol=1e-5)


def test_a_still_scene_is_dense(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(1).expand(4, -1, -1, -1)
    with torch.no_grad():
        dense = tower(clip).last_hidden_state
        with attach_cacher(tower, CacherConfig.paper(update_ratio=0.1)):
            ours = tower(clip).last_hidden_state
    torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_as_dense(make_tower, make_clip, dtype):
    tower, clip = make_tower(), make_clip(6)
    config = CacherConfig.paper(update_ratio=1.0, refresh_interval=3)
    tower, clip = tower.to(dtype), clip.to(dtype)
    with torch.no_grad():
        dense = tower(clip).last_hidden_state
        with attach_cacher(tower, config):
            ours = tower(clip).last_hidden_state
        exact = tower.double()(clip.double()).last_hidden_state
    assert ours.dtype == dtype

    # What rounding does to single values is chance; to all of them it is not.
    def error(state):
        return (state.double() - exact).square().mean().sqrt()

    assert 0 < error(ours) <= 1.1 * error(dense)


def test_autocast_is_dense_under_autocast(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        dense = tower(clip).last_hidden_state
        with attach_cacher(tower, CacherConfig.paper(update_ratio=1.0)):
            batch = tower(clip).last_hidden_state
            singly = torch.cat([tower(frame[None]).last_hidden_state for frame in clip])
    assert batch.dtype == dense.dtype == torch.float32
    torch.testing.assert_close(batch, dense, rtol=0, atol=0.1)
    torch.testing.assert_close(singly, dense, rtol=0, atol=0.1)
