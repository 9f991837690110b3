"""Small SigLIP towers with random weights, and clips in which some things move."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import SiglipVisionConfig, SiglipVisionModel

from stc_stream import CacherConfig, attach_cacher
from stc_stream.cacher import CacherStats, Recording

CLEAR = 1e-5
"""How far apart the last chosen and the first reused token must be for float32 to agree."""

MakeTower = Callable[..., SiglipVisionModel]
MakeClip = Callable[..., Tensor]


@pytest.fixture
def make_tower(seed: int) -> MakeTower:
    """Return a maker of towers: 32 wide, 3 layers, 36 tokens; every weight and bias random."""

    def make(seed: int = seed, **settings: object) -> SiglipVisionModel:
        shape = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 48,
            "patch_size": 8,
        }
        generator = torch.Generator().manual_seed(seed)
        tower = SiglipVisionModel(SiglipVisionConfig(**{**shape, **settings})).eval()
        with torch.no_grad():
            for parameter in tower.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return tower

    return make


@pytest.fixture
def make_clip(seed: int) -> MakeClip:
    """Return a maker of clips: [frames, 3, size, size], a still scene with a part that changes."""

    def make(frames: int, seed: int = seed, size: int = 48) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        scene = torch.randn(3, size, size, generator=generator)
        clip = scene + 0.05 * torch.randn(frames, 3, size, size, generator=generator)
        for frame in clip:
            row, column = torch.randint(0, size - 16, (2,), generator=generator).tolist()
            frame[:, row : row + 16, column : column + 16] = torch.randn(
                3, 16, 16, generator=generator
            )
        return clip

    return make


@pytest.fixture
def clear_case(make_tower, make_clip, seed):
    """Return a maker of a tower, a clip, and what they give frame by frame.

    Drawn anew until every choice is clear, so that none depends on how float32 rounds.
    """

    def make(config: CacherConfig, streams: Sequence[Hashable], clip: Callable = make_clip):
        for draw in itertools.count(seed):
            tower, frames = make_tower(seed=draw), clip(len(streams), seed=draw)
            expected, stats, margin = singly(tower, config, frames, streams)
            if margin > CLEAR:
                return tower, frames, expected, stats
        raise AssertionError

    return make


def singly(
    tower: SiglipVisionModel, config: CacherConfig, clip: Tensor, streams: Sequence[Hashable]
) -> tuple[Tensor, CacherStats, float]:
    """Run frames one by one; return features, counts, and how clear the closest choice was."""
    outputs, margin = [], math.inf
    with attach_cacher(tower, config) as cacher, torch.no_grad():
        for frame, stream in zip(clip, streams, strict=True):
            with cacher.streams([stream]), cacher.record() as recording:
                outputs.append(tower(frame[None]).last_hidden_state)
            margin = min(margin, choice_margin(recording, config.threshold))
        return torch.cat(outputs), cacher.stats, margin


def choice_margin(recording: Recording, threshold: float | None = None) -> float:
    """Return by how much the closest choice of a recorded forward could have gone otherwise."""
    margin = math.inf
    for layer in recording:
        for similarity, chosen in zip(layer.similarity(), layer.recomputed, strict=True):
            finite = similarity.isfinite()
            if threshold is not None and finite.any():
                margin = min(margin, float((similarity[finite] - threshold).abs().min()))
            if (chosen & finite).any() and (~chosen).any():
                gap = similarity[~chosen].min() - similarity[chosen & finite].max()
                margin = min(margin, float(gap))
    return margin


class Repeats:
    """Captures on any device: what repeats the work writes over what it wrote before."""

    def __init__(self, fails: bool = False) -> None:
        self.captures = 0
        self.inputs = []
        self._fails = fails

    def refusal(self, device):
        return None

    def capture(self, work, inputs):
        if self._fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.captures += 1
        self.inputs.append(inputs)
        outputs = [output.clone() for output in work(inputs)]

        def replay():
            for output, again in zip(outputs, work(inputs), strict=True):
                output.copy_(again)

        return replay, outputs


class Waits(TorchDispatchMode):
    """Counts what a GPU would be waited for."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.count = 0
        plain = torch.Tensor.tolist
        monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: self._wait(plain, tensor))

    def _wait(self, plain, tensor):
        self.count += 1
        return plain(tensor)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket
        aten = torch.ops.aten
        self.count += name in (aten._local_scalar_dense, aten.nonzero, aten.masked_select)
        return function(*args, **(kwargs or {}))
