"""Python around a replayed batch: ``python -m benchmarks.replay_overhead``.

Times whole calls of a SigLIP tower of 27 layers, tiny otherwise, whose batches are replayed from
graphs that do nothing: what is left is the host's work. Beside it the same tower, whose layers
return what they are given. A round is a whole cycle of refresh and selective frames, and sides
take turns; the table holds the shortest of the rounds, for a machine that is not quiet.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from stc_stream import CacherConfig, attach_cacher
from stc_stream.cacher.graphs import GraphStore

LAYERS = 27
SETTINGS = {
    "one stream, paper()": (1, CacherConfig.paper(cuda_graph=True)),
    "one stream, default": (1, CacherConfig(cuda_graph=True)),
    "eight streams, refreshing in turn": (8, CacherConfig.paper(stagger=True, cuda_graph=True)),
}
_CYCLE = 4
_WARM = 40


class _Nothing:
    """Captures what work gives, and repeats nothing."""

    def refusal(self, device: torch.device) -> str | None:
        return None

    def capture(
        self, work: Callable[[Sequence[Tensor]], Sequence[Tensor]], inputs: Sequence[Tensor]
    ) -> tuple[Callable[[], None], Sequence[Tensor]]:
        return (lambda: None), work(inputs)


def main() -> None:
    """Print microseconds a batch of each setting, and of the tower alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    rounds = parser.parse_args().rounds
    print("| setting | tower alone | with replays | around a replay |\n| --- | --- | --- | --- |")
    for name, (streams, config) in SETTINGS.items():
        alone, replayed = measure(streams, config, rounds)
        print(f"| {name} | {alone:.0f} µs | {replayed:.0f} µs | {replayed - alone:.0f} µs |")


def measure(streams: int, config: CacherConfig, rounds: int) -> tuple[float, float]:
    """Return microseconds a batch: the tower with layers that do nothing, and with replays."""
    with torch.inference_mode(), contextlib.ExitStack() as stack:
        alone, replayed = _tower(), _tower()
        for layer in alone.encoder.layers:
            layer.forward = _unchanged
        cacher = stack.enter_context(attach_cacher(replayed, config))
        cacher._graphs = GraphStore(_Nothing())
        frames = torch.randn(streams, 3, 8, 8)
        sides = {
            "alone": lambda: alone(frames),
            "replayed": lambda: _named(cacher, replayed, frames),
        }
        for _ in range(_WARM):
            sides["replayed"]()
        before = cacher._graphs.replays
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _, side in itertools.product(range(rounds), sides):
            times[side].append(_microseconds(sides[side]))
        replays = cacher._graphs.replays - before
        if replays != rounds * _CYCLE:
            raise RuntimeError(f"{replays} of {rounds * _CYCLE} batches were replayed")
        return min(times["alone"]), min(times["replayed"])


def _named(cacher: object, tower: nn.Module, frames: Tensor) -> None:
    if len(frames) == 1:
        tower(frames)
        return
    with cacher.streams(range(len(frames))):
        tower(frames)


def _microseconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    for _ in range(_CYCLE):
        run()
    return 1e6 * (time.perf_counter() - start) / _CYCLE


def _unchanged(hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
    return hidden_states


def _tower() -> SiglipVisionModel:
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
        vision_use_head=False,
    )
    return SiglipVisionModel(config).eval()


if __name__ == "__main__":
    main()
