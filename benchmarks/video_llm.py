"""What the benchmarks of prefill and sessions share: one model, clips, and who took how long."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from stc_stream import Fed, StreamingSession
from stc_stream.evaluate.timing import WallClock, timed
from stc_stream.session.untrained import LlavaSizes, build_llava_onevision

QUESTION = "What is the person in front doing with what lies on the table?"
KEPT = 64
"""Of the 196 tokens of a frame."""


def build(device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return a LLaVA-OneVision of SigLIP-base's and Qwen2-0.5B's sizes with random weights."""
    model, processor = build_llava_onevision(LlavaSizes.qwen2_0_5b())
    return model.to(device=device, dtype=dtype), processor


def clip(frames: int) -> Tensor:
    """Return frames of a still scene with a quarter of it changing, uint8 [F, 448, 448, 3]."""
    generator = torch.Generator().manual_seed(1)
    scene = torch.randint(0, 256, (1, 448, 448, 3), generator=generator, dtype=torch.uint8)
    found = scene.repeat(frames, 1, 1, 1)
    found[:, :224, :224] = torch.randint(
        0, 256, (frames, 224, 224, 3), generator=generator, dtype=torch.uint8
    )
    return found


class NoTower:
    """In a Cacher's place: the tower's output is there already, so that it costs nothing.

    Random tokens of a frame's shape, others for each frame. Only prefill is measured then.
    """

    @contextmanager
    def attach(self, tower: nn.Module) -> Iterator[NoTower]:
        """Replace the tower's forward on this instance."""
        sizes = tower.config
        places = (sizes.image_size // sizes.patch_size) ** 2
        generator = torch.Generator().manual_seed(2)

        def forward(pixels: Tensor, **_: Any) -> Any:
            shape = (len(pixels), places, sizes.hidden_size)
            tokens = torch.randn(shape, generator=generator).to(pixels)
            return SimpleNamespace(hidden_states=(tokens,))

        tower.forward = forward
        try:
            yield self
        finally:
            del tower.forward


def feed(model: Any, processor: Any, frames: Tensor, **settings: Any) -> tuple[Fed, float]:
    """Feed a new session; return what it says, and the seconds to an answer's first token."""
    with StreamingSession(model, processor, **settings) as session:
        fed = session.feed(frames)
        _, seconds = timed(lambda: session.logits(QUESTION), WallClock(model.device))
        return fed, seconds


def prefill_operations(model: Any, tokens: int) -> float:
    """Return the multiplications and additions of a causal prefill of `tokens` tokens."""
    config = model.config.get_text_config()
    layers = model.model.language_model.layers
    weights = sum(weight.numel() for weight in layers.parameters() if weight.dim() == 2)
    attention = 2 * config.num_hidden_layers * config.hidden_size * tokens * tokens
    return 2.0 * weights * tokens + attention


class Watch:
    """Sums up the seconds inside modules and methods, for as long as it is on."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._clock = WallClock()
        self._undo: list[Callable[[], None]] = []
        self._start = 0.0

    def module(self, module: nn.Module) -> None:
        """Count a module's calls."""
        for hook in (
            module.register_forward_pre_hook(self._enter),
            module.register_forward_hook(self._leave),
        ):
            self._undo.append(hook.remove)

    def method(self, owner: Any, name: str) -> None:
        """Count calls of a method of this instance."""
        own = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._enter()
            try:
                return own(*args, **kwargs)
            finally:
                self._leave()

        setattr(owner, name, counted)
        self._undo.append(lambda: delattr(owner, name))

    def remove(self) -> None:
        """Count no more."""
        for undo in self._undo:
            undo()

    def _enter(self, *_: Any) -> None:
        self._start = self._clock()

    def _leave(self, *_: Any) -> None:
        self.seconds += self._clock() - self._start


def milliseconds(seconds: list[float]) -> float:
    """Return the median, in milliseconds."""
    return statistics.median(seconds) * 1e3
