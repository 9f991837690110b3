"""Prefill of a video, 64 of 196 tokens a frame against all of them, in turns in one process.

Sizes of SigLIP-base (at 448 pixels: 784 patches, 196 tokens a frame) and Qwen2-0.5B, random
weights. Each round feeds a dense session, then one with the Pruner (and the Cacher); pytest's
timed side is ours. `extra_info` has the medians, in milliseconds: prefill with pruning, the share
of pruning in it, the time to the first token of an answer afterwards, and what the arithmetic
alone would save.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.video_llm import KEPT, NoTower, build, clip, feed, milliseconds, prefill_operations
from stc_stream import CacherConfig, Fed, PrunerConfig, compressed

PAPER = {"tower": 24.5, "prefill": 45.3}
"""What ReKV with both parts was published to save, in percent: N=2, r=0.25, 64 of 196 tokens."""


@pytest.fixture(scope="module")
def llm(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    device = request.config.getoption("--device")
    return build(device, torch.float32 if device == "cpu" else torch.bfloat16)


@pytest.fixture
def rounds(request: pytest.FixtureRequest, frames: int) -> int:
    """Return how often each side is fed: a round of 64 frames takes minutes."""
    return 5 if request.config.getoption("--full") else max(1, 32 // frames)


@pytest.mark.parametrize("frames", [16, 32, 64])
def test_prefill(benchmark, llm, rounds, frames):
    """The Pruner alone; the tower's output is there already."""
    ours = {"cacher": NoTower(), "pruner": PrunerConfig.paper(KEPT)}
    compare(benchmark, llm, clip(frames), {"cacher": NoTower()}, ours, rounds)


@pytest.mark.parametrize("frames", [16, 32, 64])
@pytest.mark.parametrize("interval", [2, 4])
def test_tower_and_prefill(benchmark, llm, rounds, request, frames, interval):
    """The Cacher and the Pruner, from frames to the memory. N=2 is the paper's own setting."""
    if frames > 16 and not request.config.getoption("--full"):
        pytest.skip("many frames through a tower: --full")
    ours = {
        "cacher": CacherConfig.paper(update_ratio=0.25, refresh_interval=interval),
        "pruner": PrunerConfig.paper(KEPT),
    }
    benchmark.extra_info["published"] = PAPER if interval == 2 else None
    compare(benchmark, llm, clip(frames), {}, ours, rounds)


def compare(
    benchmark: Callable[..., object],
    llm: tuple[Any, Any],
    frames: Tensor,
    dense: dict[str, Any],
    ours: dict[str, Any],
    rounds: int,
) -> None:
    """Feed a dense session and ours in turns, and keep each stage's seconds."""
    model, processor = llm
    check(model, processor)
    fed: dict[str, list[Fed]] = {"dense": [], "ours": []}
    first: dict[str, list[float]] = {"dense": [], "ours": []}

    def run(side: str, settings: dict[str, Any]) -> None:
        done, seconds = feed(model, processor, frames, **settings)
        fed[side].append(done)
        first[side].append(seconds)

    benchmark.pedantic(
        lambda: run("ours", ours),
        setup=lambda: run("dense", dense),
        rounds=rounds,
        warmup_rounds=0,
    )
    info = benchmark.extra_info
    for side in ("dense", "ours"):
        stages = {
            stage: milliseconds([done.seconds[stage] for done in fed[side]])
            for stage in fed[side][0].seconds
        }
        info[side] = {
            "tokens": fed[side][0].kept,
            "stages_ms": stages,
            "prefill_ms": milliseconds(
                [done.seconds["prune"] + done.seconds["prefill"] for done in fed[side]]
            ),
            "feed_ms": milliseconds([sum(done.seconds.values()) for done in fed[side]]),
            "first_token_ms": milliseconds(first[side]),
        }
    saved = {
        stage: 100 * (1 - info["ours"][stage] / info["dense"][stage])
        for stage in ("prefill_ms", "feed_ms", "first_token_ms")
    }
    towers = (info[side]["stages_ms"]["tower"] for side in ("ours", "dense"))
    saved["tower_ms"] = 100 * (1 - next(towers) / next(towers))
    operations = [prefill_operations(model, info[side]["tokens"]) for side in ("ours", "dense")]
    info["saved_percent"] = saved
    info["arithmetic_saves_percent"] = 100 * (1 - operations[0] / operations[1])
    info["pruning_percent_of_prefill"] = (
        100 * info["ours"]["stages_ms"]["prune"] / info["ours"]["prefill_ms"]
    )


def check(model: Any, processor: Any) -> None:
    """See that what is timed is right: a session answers as the stock path with its tokens."""
    frames = clip(2)
    settings = {"pruner": PrunerConfig.paper(KEPT)}
    prompt = processor.prompt("Why?", video=True)
    video = [model.config.video_token_id] * (2 * 196 + 1)
    ids = torch.tensor([[*prompt.before, *video, *prompt.after]], device=model.device)
    like = next(model.parameters())
    pixels = processor.pixels(frames).to(like)[None]
    with compressed(model, **settings):
        expected = model.generate(
            input_ids=ids,
            pixel_values_videos=pixels,
            max_new_tokens=1,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        ).logits[0][0]
    from stc_stream import StreamingSession

    with StreamingSession(model, processor, positions="contiguous", **settings) as session:
        session.feed(frames[:1])
        session.feed(frames[1:])
        found = session.logits("Why?")
    tolerance = 1e-3 if like.dtype == torch.float32 else 0.2
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
