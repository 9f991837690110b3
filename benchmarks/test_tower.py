"""A tower run by a method against the same tower dense, in turns in one process.

The sizes of SigLIP-so400m, CLIP-L and Qwen2-VL with random weights, as video models use them (no
pooling head, no patch merger): all layers where single frames are timed, since the patch embedding,
which nothing saves, weighs more the fewer there are; fewer layers where the frames are many. The
method is STC's Cacher, or what `--method NAME:SETTING=VALUE,...` names of
`stc_stream.evaluate.methods`; the refresh interval, where it has one, is the test's own. The dense
variants, eager and compiled, are timed between the method's rounds, so that all see the same
machine. `extra_info` has their medians, how many times faster the method is than the faster of
them, and what the arithmetic allows. The method is not compiled.
`python -m benchmarks.tower_report` runs a part of these, and keeps its results and figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stc_stream.evaluate.bench.engine import TOLERANCE
from stc_stream.evaluate.cost import CostModel
from stc_stream.evaluate.frames import MethodTower
from stc_stream.evaluate.method import Method
from stc_stream.evaluate.methods import read_method
from stc_stream.evaluate.timing import (
    Timing,
    Turns,
    Variant,
    WallClock,
    median_ratio,
    wait_for,
)
from stc_stream.evaluate.variants import Dense, Inputs, compiled, eager, quiet, shared_copy
from stc_stream.towers.load import VisionModel, build_tower
from stc_stream.towers.sizes import MODEL_SIZES

NEVER = 1_000_000
LARGE = ("siglip-so400m", "clip-l", "qwen2-vl")
STREAMS = (1, 2, 4, 8, 16, 32, 64)

Make = Callable[[str, int], VisionModel]


@pytest.fixture(params=["float32", "bfloat16"])
def make_tower(request: pytest.FixtureRequest, device: str) -> Make:
    def make(name: str, layers: int) -> VisionModel:
        return build_tower(name, layers=layers, device=device, dtype=request.param)

    return make


@pytest.fixture
def method(request: pytest.FixtureRequest) -> Method:
    return read_method(request.config.getoption("--method"))


@pytest.mark.parametrize("name", LARGE)
def test_selective_frame(benchmark, make_tower: Make, method: Method, name: str):
    """One stream, a frame at a time, after its refresh; all layers."""
    tower = make_tower(name, MODEL_SIZES[name].layers)
    compare(benchmark, tower, with_cycle(method, NEVER), clip(tower, 1), rounds=5)


@pytest.mark.parametrize("interval", [2, 4])
@pytest.mark.parametrize("name", LARGE)
def test_cycle(benchmark, make_tower: Make, method: Method, name: str, interval: int):
    """One stream, a frame at a time: a refresh frame and the selective ones that follow it."""
    tower = make_tower(name, 8)
    compare(benchmark, tower, with_cycle(method, interval), clip(tower, interval), rounds=5)


@pytest.mark.parametrize("name", LARGE)
def test_selective_frames_of_eight_streams(benchmark, make_tower: Make, method: Method, name: str):
    """Eight streams, a frame of each at a time, after their refresh."""
    tower = make_tower(name, 4)
    compare(benchmark, tower, with_cycle(method, NEVER), clip(tower, 1, streams=8), rounds=5)


@pytest.mark.parametrize("interval", [2, 4])
@pytest.mark.parametrize("name", LARGE)
def test_cycle_of_eight_streams(
    benchmark, make_tower: Make, method: Method, name: str, interval: int
):
    """Eight streams, a frame of each at a time, refreshed in turn: a whole cycle of batches."""
    tower = make_tower(name, 2)
    staggered = with_cycle(method, interval, stagger=True)
    compare(benchmark, tower, staggered, clip(tower, interval, streams=8), rounds=3)


@pytest.mark.parametrize("streams", STREAMS)
def test_selective_frames_of_streams(benchmark, make_tower: Make, method: Method, streams: int):
    """A layer of SigLIP-base, a frame of each of several streams at a time: what a frame costs."""
    tower = make_tower("siglip-base", 1)
    batches = clip(tower, 1, streams=streams)
    compare(benchmark, tower, with_cycle(method, NEVER), batches, rounds=5)


def with_cycle(method: Method, interval: int, stagger: bool = False) -> Method:
    """Return a method with another refresh interval, staggered or not, if it has such settings."""
    tower: Any = method.tower
    if tower is None:
        return method
    settings = {"refresh_interval": interval, "stagger": stagger}
    known = {field.name for field in fields(tower)}
    return replace(method, tower=replace(tower, **{k: settings[k] for k in settings if k in known}))


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
    benchmark: Any, tower: VisionModel, method: Method, batches: Sequence[Inputs], rounds: int
) -> None:
    """Time a pass over the batches by a method, and before each one of every dense variant."""
    streams = len(batches[0]["grid_thw" if tower.packing else "pixel_values"])
    with torch.no_grad(), MethodTower(tower, method) as ours:
        dense, left_out = dense_variants(tower, batches[0])
        check(tower, ours, batches, streams)
        turns = Turns(
            {name: _passing(each, batches) for name, each in dense.items()}, WallClock(tower.device)
        )

        def run() -> None:
            for batch in batches:
                ours.run(batch, range(streams))
            wait_for(tower.device)

        benchmark.pedantic(run, setup=turns.run_round, rounds=rounds, warmup_rounds=1)
        cost = CostModel.of(ours.tower, tower.tokens + tower.prefix_tokens)
    times = benchmark.stats.stats.data
    timings = turns.timings(rounds)
    fastest = min(timings, key=lambda name: timings[name].median)
    ratio = getattr(method.tower, "update_ratio", None)
    interval = None if method.refresh_interval == NEVER else method.refresh_interval
    benchmark.extra_info |= {
        "tower": f"{tower.name}, {tower.layers} layers, {tower.dtype}",
        "method": method.name,
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
        # What is saved by other means than recomputing fewer tokens has no such bound.
        "cap": None if ratio is None else cost.max_speedup(ratio, interval),
    }


def dense_variants(tower: VisionModel, batch: Inputs) -> tuple[dict[str, Dense], dict[str, str]]:
    """Return the tower eager and compiled, and what could not be compiled here."""
    variants = {"dense": eager(tower.module)}
    fast = compiled(shared_copy(tower.module))
    expected = variants["dense"](batch)
    try:
        with quiet():
            found = fast(batch)
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
        return variants, {"dense_compiled": str(error).partition("\n")[0]}
    require_same("compiled", tower, found, expected)
    return variants | {"dense_compiled": fast}, {}


def check(
    tower: VisionModel, ours: MethodTower, batches: Sequence[Inputs], streams: int = 1
) -> None:
    """Refuse to time what is wrong; leaves every stream with a reference, and in its turn."""
    if ours.method.refresh_interval > 1:
        dense = eager(tower.module)(batches[0])
        # A refresh, and a frame of which nothing has changed since.
        for what in ("a refresh", "an unchanged frame"):
            require_same(what, tower, ours.run(batches[0], range(streams)), dense)
    ours.reset()
    for batch in batches:
        ours.run(batch, range(streams))


def require_same(what: str, tower: VisionModel, found: Tensor, dense: Tensor) -> None:
    """Raise AssertionError unless tokens are the dense tower's, but for rounding."""
    apart = float((found.float() - dense.float()).norm() / dense.float().norm())
    assert apart <= TOLERANCE[tower.dtype], f"{what}: {apart:.2g} of the norm from dense"


def _passing(dense: Dense, batches: Sequence[Inputs]) -> Variant:
    return lambda: [dense(batch) for batch in batches]
