"""A tower with a Cacher against the same tower without, in turns in one process.

SigLIP-so400m geometry with random weights, as LLaVA uses it (no pooling head): all its layers where
single frames are timed, since the patch embedding, which nothing saves, weighs more the fewer there
are; fewer layers where the frames are many. The timed side is ours; the dense side is timed between
its rounds, so that both see the same machine. `extra_info` has the dense median, how many times
faster ours is, and the arithmetic's cap.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

from benchmarks.shapes import SIGLIP_SO400M
from stc_stream import Cacher, CacherConfig, attach_cacher

SHAPE = SIGLIP_SO400M
RATIO = 0.25
NEVER = 1_000_000


@pytest.fixture(params=["float32", "bfloat16"])
def make_tower(request: pytest.FixtureRequest) -> Callable[[int], SiglipVisionModel]:
    def make(layers: int) -> SiglipVisionModel:
        torch.manual_seed(0)
        config = SiglipVisionConfig(
            hidden_size=SHAPE.width,
            intermediate_size=SHAPE.mlp,
            num_hidden_layers=layers,
            num_attention_heads=SHAPE.heads,
            image_size=SHAPE.image,
            patch_size=SHAPE.patch,
            vision_use_head=False,
        )
        return SiglipVisionModel(config).eval().to(getattr(torch, request.param))

    return make


def test_selective_frame(benchmark, make_tower):
    """One stream, a frame at a time, after its refresh."""
    tower = make_tower(SHAPE.layers)
    with attach_cacher(tower, CacherConfig(RATIO, NEVER)) as cacher:
        compare(benchmark, tower, cacher, clip(tower, 1), SHAPE.selective_share(RATIO), rounds=7)


@pytest.mark.parametrize("interval", [2, 4])
def test_cycle(benchmark, make_tower, interval):
    """One stream, a frame at a time: a refresh frame and the selective ones that follow it."""
    tower = make_tower(8)
    with attach_cacher(tower, CacherConfig(RATIO, interval)) as cacher:
        share = SHAPE.cycle_share(RATIO, interval)
        compare(benchmark, tower, cacher, clip(tower, interval), share, rounds=5)


def test_selective_frames_of_eight_streams(benchmark, make_tower):
    """Eight streams, a frame of each at a time, after their refresh."""
    tower = make_tower(4)
    with attach_cacher(tower, CacherConfig(RATIO, NEVER)) as cacher, cacher.streams(range(8)):
        frames = clip(tower, 8).view(1, 8, 3, SHAPE.image, SHAPE.image)
        compare(benchmark, tower, cacher, frames, SHAPE.selective_share(RATIO), rounds=5)


def clip(tower: SiglipVisionModel, frames: int) -> Tensor:
    """Return [frames, 1, 3, H, W]: one still scene with noise, a quarter of it changing."""
    generator = torch.Generator().manual_seed(1)
    size = (SHAPE.image, SHAPE.image)
    scene = torch.randn(3, *size, generator=generator)
    images = scene + 0.01 * torch.randn(frames, 3, *size, generator=generator)
    half = SHAPE.image // 2
    images[:, :, :half, :half] = torch.randn(frames, 3, half, half, generator=generator)
    return images.to(tower.dtype)[:, None]


def compare(
    benchmark: Callable[..., object],
    tower: SiglipVisionModel,
    cacher: Cacher,
    batches: Tensor,
    share: float,
    rounds: int,
) -> None:
    """Time a pass over the batches with the Cacher, and one without before each."""
    check(tower, cacher, batches)
    dense: list[float] = []

    def run() -> None:
        for batch in batches:
            tower(batch)

    def run_densely() -> None:
        with cacher.paused():
            start = time.perf_counter()
            run()
            dense.append(time.perf_counter() - start)

    with torch.no_grad():
        benchmark.pedantic(run, setup=run_densely, rounds=rounds, warmup_rounds=1)
    times, dense = benchmark.stats.stats.data, dense[-rounds:]
    benchmark.extra_info |= {
        "tower": f"{SHAPE.name}, {len(tower.encoder.layers)} layers, {tower.dtype}",
        "threads": torch.get_num_threads(),
        "dense_ms": 1000 * statistics.median(dense),
        "ours_ms": 1000 * statistics.median(times),
        "times_faster": statistics.median(dense) / statistics.median(times),
        "times_faster_of_minima": min(dense) / min(times),
        "cap": 1 / share,
    }


@torch.no_grad()
def check(tower: SiglipVisionModel, cacher: Cacher, batches: Tensor) -> None:
    """Refuse to time what is wrong; leaves every stream with a reference."""
    with cacher.paused():
        dense = tower(batches[0]).last_hidden_state.float()
    cacher.reset()
    first = tower(batches[0]).last_hidden_state.float()
    again = tower(batches[0]).last_hidden_state.float()
    tolerance = 1e-3 if tower.dtype == torch.float32 else 0.2
    torch.testing.assert_close(first, dense, rtol=0, atol=tolerance)
    torch.testing.assert_close(again, dense, rtol=0, atol=tolerance)
    cacher.reset()
    for batch in batches:
        tower(batch)
