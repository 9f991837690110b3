"""What a session costs beside the model: a frame's own cost, writing and forking its memory.

Sizes of SigLIP-base (784 patches, 196 tokens a frame, 64 kept) and Qwen2-0.5B, random weights.
"""

from __future__ import annotations

import statistics
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.cache_utils import DynamicLayer

import stc_kernels
from benchmarks.video_llm import KEPT, QUESTION, Watch, build, clip
from stc_stream import (
    CacherConfig,
    PrunerConfig,
    RetrievalMemory,
    StreamingSession,
    WindowMemory,
)
from stc_stream.evaluate.timing import WallClock, timed
from stc_stream.session.memory import StreamLayout
from stc_stream.session.memory.layer import PreallocatedLayer
from stc_stream.session.numbering import Place

HEADS, HEAD_WIDTH = 2, 64
LAYER = SimpleNamespace(
    max_position_embeddings=32768,
    num_hidden_layers=1,
    head_dim=HEAD_WIDTH,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6},
)
"""The config of one layer of Qwen2-0.5B."""
MEMORIES = {"window": WindowMemory(64, 15000), "retrieval": RetrievalMemory(15000, 64)}


@pytest.fixture(scope="module")
def llm(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    if request.config.getoption("--device") != "cpu":
        pytest.skip("the clock of a session's own cost is the CPU's")
    return build("cpu", torch.float32)


def test_own_cost(benchmark, llm, monkeypatch):
    """A frame at a time; what is spent neither in the model nor in the pruner's op."""
    model, processor = llm
    core, watch, clock = model.model, Watch(), WallClock()
    for module in (core.vision_tower, core.multi_modal_projector, core.language_model):
        watch.module(module)
    watch.method(core, "apply_pooling")
    prune = stc_kernels.prune_tokens

    def counted(*args: Any) -> Any:
        kept, seconds = timed(lambda: prune(*args), clock)
        watch.seconds += seconds
        return kept

    monkeypatch.setattr(stc_kernels, "prune_tokens", counted)
    frames, shares = clip(12), []
    settings = {"cacher": CacherConfig(), "pruner": PrunerConfig.paper(KEPT)}
    with StreamingSession(model, processor, **settings) as session:
        session.feed(frames[:1])
        given = iter(frames[1:])

        def run() -> None:
            watch.seconds = 0.0
            _, whole = timed(lambda: session.feed(next(given)[None]), clock)
            shares.append(100 * (whole - watch.seconds) / whole)

        benchmark.pedantic(run, rounds=10, warmup_rounds=1)
    watch.remove()
    benchmark.extra_info["own_percent"] = statistics.median(shares)
    benchmark.extra_info["own_percent_most"] = max(shares)


@pytest.mark.parametrize("frames", [10, 5000])
@pytest.mark.parametrize("side", ["session", "transformers"])
def test_writing_a_frame(benchmark, frames, side):
    """A frame's keys and values into one layer that holds `frames` frames already."""
    keys, values = torch.randn(2, 1, HEADS, KEPT, HEAD_WIDTH)
    layer: Any = PreallocatedLayer((frames + 200) * KEPT) if side == "session" else DynamicLayer()
    held = torch.randn(2, 1, HEADS, KEPT * frames, HEAD_WIDTH)
    layer.update(*held)
    length = layer.get_seq_length()
    benchmark.pedantic(
        lambda: layer.update(keys, values),
        setup=lambda: layer.crop(length - layer.get_seq_length()),
        rounds=100,
        warmup_rounds=10,
    )
    assert torch.equal(layer.keys[:, :, -KEPT:], keys)


@pytest.mark.parametrize("frames", [10, 5000])
@pytest.mark.parametrize("memory", MEMORIES)
def test_writing_a_frame_into_a_memory(benchmark, frames, memory):
    """Evicting what has no room and, for retrieval, turning keys back and writing them to pages.

    With contiguous positions; the mean counts the frames at which a window moves to another store.
    """
    stream = Written(MEMORIES[memory])
    for _ in range(frames):
        stream.write()
    benchmark.pedantic(stream.write, rounds=300, warmup_rounds=10)
    benchmark.extra_info["bytes_device"] = stream.cache.bytes_device


@pytest.mark.parametrize("frames", [100, 5000])
def test_bringing_frames_back(benchmark, frames):
    """What a layer does for a question of 30 tokens: it chooses, reads and turns 64 frames."""
    stream = Written(MEMORIES["retrieval"])
    for _ in range(frames):
        stream.write()
    attention = SimpleNamespace(
        layer_idx=0, head_dim=HEAD_WIDTH, q_proj=nn.Linear(896, 14 * HEAD_WIDTH)
    )
    hidden = torch.randn(1, 30, 896)

    @torch.no_grad()
    def run() -> Any:
        cache = stream.cache.borrow()
        cache._bring_back(attention, {"hidden_states": hidden})
        return cache

    cache = benchmark.pedantic(run, rounds=20, warmup_rounds=2)
    assert len(cache.retrieved[0]) == 64
    assert cache.layers[0].rows_held == 64 * KEPT


class Written:
    """One layer's memory of a stream, as a session writes to it."""

    def __init__(self, memory: Any) -> None:
        self.cache = memory.open(LAYER, StreamLayout("contiguous"))
        self._frames = torch.randn(16, 2, 1, HEADS, KEPT, HEAD_WIDTH)
        self._number, self._place = 0, Place()
        layer = SimpleNamespace(self_attn=SimpleNamespace(q_proj=None, head_dim=HEAD_WIDTH))
        self._llm = SimpleNamespace(layers=[layer])

    def write(self) -> None:
        """Write a frame."""
        _, place = self.cache.make_room([KEPT], self._place)
        positions = torch.arange(place.text, place.text + KEPT)[None]
        keys, values = self._frames[self._number % 16]
        with self.cache.running(self._llm, positions):
            self.cache.update(keys, values, 0)
        self._number, self._place = self._number + 1, place.after_text(KEPT)


@pytest.mark.parametrize("frames", [1, 16])
def test_fork(benchmark, llm, frames):
    """A fork for an answer: what it costs depends on the layers, not on what they hold."""
    model, processor = llm
    with StreamingSession(model, processor, pruner=PrunerConfig.paper(KEPT)) as session:
        session.feed(clip(frames))

        def run() -> None:
            with session.fork() as other:
                assert other.stats.bytes_reserved == 0

        benchmark.pedantic(run, rounds=100, warmup_rounds=5)
        assert torch.equal(session.fork().logits(QUESTION), session.logits(QUESTION))
