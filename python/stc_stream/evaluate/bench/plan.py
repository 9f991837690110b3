"""What a benchmark times, and how much of it fits into two minutes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from stc_stream.cacher import CacherConfig
from stc_stream.evaluate.cost import CostModel
from stc_stream.evaluate.method import Method
from stc_stream.evaluate.timing import WallClock, timed
from stc_stream.towers import read_tower
from stc_stream.towers.load import VisionModel
from stc_stream.video.sample import Clip

SECONDS = 45.0
"""How long the rounds of a default run may take; compiling and fidelity come on top."""

FEWEST_ROUNDS, MOST_ROUNDS = 3, 15


@dataclass(frozen=True)
class BenchConfig:
    """What to time, checked when made.

    Attributes:
        update_ratios: shares of a selective frame's tokens that are recomputed, each in (0, 1].
        refresh_intervals: frames from one refresh to the next, each at least 2.
        streams: frames a batch, one of each stream, each at least 1.
        rounds: how often every variant is timed; None: as often as fits.
        compile: whether the dense tower is also timed under `torch.compile`.
    """

    update_ratios: tuple[float, ...] = (0.1, 0.25, 0.5)
    refresh_intervals: tuple[int, ...] = (2, 4)
    streams: tuple[int, ...] = (1, 4)
    rounds: int | None = None
    compile: bool = True

    def __post_init__(self) -> None:
        for name in ("update_ratios", "refresh_intervals", "streams"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"{name} must hold at least one value, but is empty")
            object.__setattr__(self, name, tuple(sorted(set(values))))
        for ratio in self.update_ratios:
            CacherConfig(update_ratio=ratio)
        for interval in self.refresh_intervals:
            if interval < 2:
                raise ValueError(
                    f"refresh_interval must be at least 2 (1 is the dense tower), but is {interval}"
                )
        for streams in self.streams:
            if streams < 1:
                raise ValueError(f"streams must be at least 1, but is {streams}")
        if self.rounds is not None and self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, but is {self.rounds}")

    def refreshes(self, streams: int, interval: int) -> tuple[int, ...]:
        """Return how many of `streams` streams refresh in each batch of a cycle, staggered."""
        return tuple(len(turn(streams, interval, batch)) for batch in range(interval))

    def mixes(self, streams: int) -> tuple[int, ...]:
        """Return the numbers of refreshes that some batch has, or that all or none do."""
        counts = {0, streams}
        for interval in self.refresh_intervals:
            counts.update(self.refreshes(streams, interval))
        return tuple(sorted(counts))

    def frames_a_round(
        self, cost: CostModel, dense_variants: int, methods: Sequence[Method] = ()
    ) -> float:
        """Return how many dense frames a round of all stream counts costs."""
        total = 0.0
        for streams in self.streams:
            total += streams * (dense_variants + 1)
            # At most: a method's cycle as if it were dense.
            total += streams * sum(method.refresh_interval for method in methods)
            for ratio in self.update_ratios:
                share = cost.selective_share(ratio)
                mixes = [count for count in self.mixes(streams) if count < streams]
                total += sum(count + (streams - count) * share for count in mixes)
        return total


def turn(streams: int, interval: int, batch: int) -> frozenset[int]:
    """Return the streams that refresh in a batch, as `CacherConfig(stagger=True)` has it.

    Streams that came together refresh one after the other, each every `interval` batches.
    """
    return frozenset(stream for stream in range(streams) if (stream + batch) % interval == 0)


def first_layers(tower: VisionModel, layers: int) -> VisionModel:
    """Return a tower that keeps only the first layers of `tower`, whose module is cut.

    Raises:
        ValueError: more layers than it has, or less than one.
    """
    if not 1 <= layers <= tower.layers:
        raise ValueError(f"layers must be 1 to {tower.layers} for {tower.name}, but is {layers}")
    first = read_tower(tower.module).layers[0].module
    for module in tower.module.modules():
        if isinstance(module, nn.ModuleList) and len(module) and module[0] is first:
            del module[layers:]
    return VisionModel(**{**vars(tower), "layers": layers})


def fitting_layers(
    probe: VisionModel,
    layers: int,
    config: BenchConfig,
    clip: Clip,
    methods: Sequence[Method] = (),
) -> int:
    """Return how many layers of a tower can be timed in the time that a default run has.

    Args:
        probe: the tower, or some of its first layers.
        layers: how many the whole tower has.
        config: what is to be timed.
        clip: frames.
        methods: what else is to be timed.
    """
    read = read_tower(probe.module)
    cost = CostModel.of(read, probe.tokens + probe.prefix_tokens)
    rounds = config.frames_a_round(cost, 1 + config.compile, methods)
    seconds = _frame_seconds(probe, clip) * layers / probe.layers
    # One more round warms all variants up.
    needed = seconds * rounds * (FEWEST_ROUNDS + 1)
    return layers if needed <= SECONDS else max(1, math.floor(layers * SECONDS / needed))


def rounds_that_fit(config: BenchConfig, round_seconds: float) -> int:
    """Return how many rounds of one stream count to time, each of `round_seconds`."""
    if config.rounds is not None:
        return config.rounds
    share = SECONDS / len(config.streams)
    return min(MOST_ROUNDS, max(FEWEST_ROUNDS, int(share / max(round_seconds, 1e-9))))


@torch.no_grad()
def _frame_seconds(tower: VisionModel, clip: Clip) -> float:
    inputs = tower.batch(clip.images[:1])
    clock = WallClock(tower.device)
    return min(timed(lambda: tower.module(**inputs), clock)[1] for _ in range(3))
