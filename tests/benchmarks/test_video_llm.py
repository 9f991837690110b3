"""What the benchmarks of prefill and sessions are made of, on a tiny model."""

from __future__ import annotations

import pytest
import torch

from benchmarks.video_llm import NoTower, Watch, clip, feed, prefill_operations
from stc_stream import PrunerConfig
from stc_stream.evaluate.timing import WallClock, timed
from stc_stream.session.untrained import LlavaSizes, build_llava_onevision


@pytest.fixture
def llm():
    return build_llava_onevision()


def test_without_a_tower_only_prefill_is_left(llm):
    model, processor = llm
    frames = torch.zeros(3, 32, 32, 3, dtype=torch.uint8)
    calls = []
    layer = next(
        module for name, module in model.named_modules() if name.endswith("encoder.layers.0")
    )
    layer.register_forward_hook(lambda *_: calls.append(1))
    fed, first = feed(model, processor, frames, cacher=NoTower(), pruner=PrunerConfig.paper(4))
    assert (calls, fed.tokens, fed.kept) == ([], 48, 12)
    assert first > 0
    # Frames differ, so that there is something to prune.
    assert not torch.equal(fed.index[0], fed.index[1]) or not torch.equal(
        fed.index[1], fed.index[2]
    )
    feed(model, processor, frames)
    assert calls, "the tower is back"


def test_operations_of_a_prefill(llm):
    model, _ = llm
    config = LlavaSizes().llm
    width, hidden, layers, heads, kv_heads = config
    weights = 2 * width * width + 2 * width * width * kv_heads // heads + 3 * width * hidden
    # Attention of a causal prefill: half of S × S pairs, twice (scores and values), 2 each.
    expected = layers * (2 * weights * 10 + 2 * width * 10 * 10)
    assert prefill_operations(model, 10) == expected


def test_seconds_inside_are_summed():
    module = torch.nn.Linear(2, 2)
    watch, inside, clock = Watch(), [], WallClock()

    def slow(*_):
        inside.append(timed(lambda: torch.randn(300, 300) @ torch.randn(300, 300), clock)[1])

    watch.module(module)
    module.register_forward_pre_hook(slow)
    _, whole = timed(lambda: [module(torch.zeros(1, 2)) for _ in range(2)], clock)
    assert sum(inside) <= watch.seconds <= whole
    seconds = watch.seconds
    watch.remove()
    module(torch.zeros(1, 2))
    assert watch.seconds == seconds


def test_a_quarter_of_the_clip_changes():
    frames = clip(2)
    changed = (frames[0] != frames[1]).any(-1)
    assert changed[:224, :224].float().mean() > 0.99
    assert not changed[224:].any()
    assert not changed[:, 224:].any()
