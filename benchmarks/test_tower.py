"""A tower with a Cacher against the same tower without, in turns in one process.

Geometries of SigLIP-so400m, CLIP-L and Qwen2-VL with random weights, as video models use them (no
pooling head, no patch merger): all layers where single frames are timed, since the patch embedding,
which nothing saves, weighs more the fewer there are; fewer layers where the frames are many. The
timed side is ours; the dense sides, eager and compiled, are timed between its rounds, so that all
see the same machine. `extra_info` has their medians, how many times faster ours is than the faster
of them, and the arithmetic's cap. Ours is not compiled.
`python -m benchmarks.tower_report` runs a part of these, and keeps its results and figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stc_stream import Cacher, CacherConfig, CacherStats, attach_cacher
from stc_stream.evaluate.cost import CostModel
from stc_stream.evaluate.timing import (
    Timing,
    Turns,
    Variant,
    WallClock,
    median_ratio,
    wait_for,
)
from stc_stream.evaluate.variants import Dense, compiled, eager, quiet, shared_copy
from stc_stream.towers.load import VisionModel, build_tower
from stc_stream.towers.sizes import MODEL_SIZES

RATIO = 0.25
NEVER = 1_000_000
LARGE = ("siglip-so400m", "clip-l", "qwen2-vl")
STREAMS = (1, 2, 4, 8, 16, 32, 64)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}

Make = Callable[[str, int], VisionModel]
Inputs = dict[str, Tensor]


@pytest.fixture(params=["float32", "bfloat16"])
def make_tower(request: pytest.FixtureRequest, device: str) -> Make:
    def make(name: str, layers: int) -> VisionModel:
        return build_tower(name, layers=layers, device=device, dtype=request.param)

    return make


@pytest.mark.parametrize("name", LARGE)
def test_selective_frame(benchmark, make_tower: Make, name: str):
    """One stream, a frame at a time, after its refresh; all layers."""
    tower = make_tower(name, MODEL_SIZES[name].layers)
    compare(benchmark, tower, CacherConfig.paper(RATIO, NEVER), clip(tower, 1), rounds=5)


@pytest.mark.parametrize("interval", [2, 4])
@pytest.mark.parametrize("name", LARGE)
def test_cycle(benchmark, make_tower: Make, name: str, interval: int):
    """One stream, a frame at a time: a refresh frame and the selective ones that follow it."""
    tower = make_tower(name, 8)
    compare(benchmark, tower, CacherConfig.paper(RATIO, interval), clip(tower, interval), rounds=5)


@pytest.mark.parametrize("name", LARGE)
def test_selective_frames_of_eight_streams(benchmark, make_tower: Make, name: str):
    """Eight streams, a frame of each at a time, after their refresh."""
    tower = make_tower(name, 4)
    compare(benchmark, tower, CacherConfig.paper(RATIO, NEVER), clip(tower, 1, streams=8), rounds=5)


@pytest.mark.parametrize("interval", [2, 4])
@pytest.mark.parametrize("name", LARGE)
def test_cycle_of_eight_streams(benchmark, make_tower: Make, name: str, interval: int):
    """Eight streams, a frame of each at a time, refreshed in turn: a whole cycle of batches."""
    tower = make_tower(name, 2)
    config = CacherConfig.paper(RATIO, interval, stagger=True)
    compare(benchmark, tower, config, clip(tower, interval, streams=8), rounds=3)


@pytest.mark.parametrize("streams", STREAMS)
def test_selective_frames_of_streams(benchmark, make_tower: Make, streams: int):
    """A layer of SigLIP-base, so many streams, a frame of each at a time: what a frame costs."""
    tower = make_tower("siglip-base", 1)
    compare(
        benchmark,
        tower,
        CacherConfig.paper(RATIO, NEVER),
        clip(tower, 1, streams=streams),
        rounds=5,
    )


def clip(tower: VisionModel, batches: int, streams: int = 1) -> list[Inputs]:
    """Return batches of a frame of each stream: still scenes with noise, a quarter changing."""
    generator = torch.Generator().manual_seed(1)
    size = tower.image_size
    scenes = torch.randn(streams, 3, size, size, generator=generator)
    found = []
    for _ in range(batches):
        images = scenes + 0.01 * torch.randn(scenes.shape, generator=generator)
        changed = images[..., : size // 2, : size // 2]
        changed.copy_(torch.randn(changed.shape, generator=generator))
        found.append(tower.inputs(images.to(device=tower.device, dtype=tower.dtype)))
    return found


def compare(
    benchmark: Callable[..., object],
    tower: VisionModel,
    config: CacherConfig,
    batches: Sequence[Inputs],
    rounds: int,
) -> CacherStats:
    """Time a pass over the batches with a Cacher, and before each one of every dense side."""
    streams = len(batches[0]["grid_thw" if tower.packing else "pixel_values"])
    interval = len(batches)
    ours = replace(tower, module=shared_copy(tower.module))

    def run() -> None:
        for batch in batches:
            ours.module(**batch)
        wait_for(tower.device)

    def densely(dense: Dense) -> Variant:
        return lambda: [dense(batch) for batch in batches]

    with torch.no_grad():
        sides, left_out = dense_sides(tower, batches[0])
        with attach_cacher(ours.module, config) as cacher, cacher.streams(range(streams)):
            check(ours, cacher, batches)
            variants = {name: densely(dense) for name, dense in sides.items()}
            turns = Turns(variants, WallClock(tower.device))
            benchmark.pedantic(run, setup=turns.run_round, rounds=rounds, warmup_rounds=1)
            cost = CostModel.of(cacher.tower, tower.tokens + tower.prefix_tokens)
            stats = cacher.stats
    times = benchmark.stats.stats.data
    timings = turns.timings(rounds)
    fastest = min(timings, key=lambda name: timings[name].median)
    benchmark.extra_info |= {
        "tower": f"{tower.name}, {tower.layers} layers, {tower.dtype}",
        "layers": tower.layers,
        "streams": streams,
        "frames": streams * len(batches),
        "threads": torch.get_num_threads(),
        **{f"{name}_ms": 1000 * timing.median for name, timing in timings.items()},
        "ours_ms": 1000 * Timing.of(times).median,
        "fastest": fastest,
        "left_out": left_out,
        "times_faster": median_ratio(turns.seconds(fastest, rounds), times),
        "times_faster_of_minima": timings[fastest].best / min(times),
        "cap": cost.max_speedup(RATIO, None if config.refresh_interval == NEVER else interval),
    }
    return stats


def dense_sides(tower: VisionModel, batch: Inputs) -> tuple[dict[str, Dense], dict[str, str]]:
    """Return the tower eager and compiled, and what could not be compiled here."""
    sides = {"dense": eager(tower.module)}
    fast = compiled(shared_copy(tower.module))
    expected = sides["dense"](batch).float()
    try:
        with quiet():
            found = fast(batch).float()
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
        return sides, {"dense_compiled": str(error).partition("\n")[0]}
    apart = (found - expected).norm() / expected.norm()
    assert apart <= TOLERANCE[tower.dtype], f"compiled: {apart:.2g} of the norm from dense"
    return sides | {"dense_compiled": fast}, {}


def check(tower: VisionModel, cacher: Cacher, batches: Sequence[Inputs]) -> None:
    """Refuse to time what is wrong; leaves every stream with a reference, and in its turn."""
    with cacher.paused():
        dense = tower.module(**batches[0]).last_hidden_state.float()
    for _ in range(2):
        # A refresh, and a frame of which nothing has changed since.
        found = tower.module(**batches[0]).last_hidden_state.float()
        apart = (found - dense).norm() / dense.norm()
        assert apart <= TOLERANCE[tower.dtype], f"{apart:.2g} of the norm from dense"
    cacher.reset()
    for batch in batches:
        tower.module(**batch)
