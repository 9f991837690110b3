"""What a session costs beside the model: a frame's own cost, writing and forking its memory.

Sizes of SigLIP-base (784 patches, 196 tokens a frame, 64 kept) and Qwen2-0.5B, random weights.
"""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicLayer

import stc_kernels
from benchmarks.video_llm import KEPT, QUESTION, Watch, build, clip
from stc_stream import CacherConfig, PrunerConfig, StreamingSession
from stc_stream.evaluate.timing import WallClock, timed
from stc_stream.session.memory.layer import PreallocatedLayer

HEADS, HEAD_WIDTH = 2, 64


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


@pytest.mark.parametrize("frames", [1, 16])
def test_fork(benchmark, llm, frames):
    """A fork for an answer: what it costs hangs on the layers, not on what they hold."""
    model, processor = llm
    with StreamingSession(model, processor, pruner=PrunerConfig.paper(KEPT)) as session:
        session.feed(clip(frames))

        def run() -> None:
            with session.fork() as other:
                assert other.stats.bytes_reserved == 0

        benchmark.pedantic(run, rounds=100, warmup_rounds=5)
        assert torch.equal(session.fork().logits(QUESTION), session.logits(QUESTION))
