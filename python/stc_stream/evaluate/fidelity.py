"""How close a compressed tower stays to the dense one: by layer, by frames since the refresh."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stc_stream.towers import TowerSpec


@dataclass(frozen=True)
class Fidelity:
    """Cosine of compressed to dense tokens, mean over tokens and over the frames of each age.

    Attributes:
        ages: frames since the reference, ascending; 0 is a refresh.
        frames: for each age, how many frames were seen.
        layers: for each layer, its output's cosine at each age; None where it is not a number.
        features: the same of the tower's own output.
    """

    ages: tuple[int, ...]
    frames: tuple[int, ...]
    layers: tuple[tuple[float | None, ...], ...]
    features: tuple[float | None, ...]


class FidelityTally:
    """Adds frames up to a `Fidelity`; what it holds does not grow with them."""

    def __init__(self) -> None:
        self._sums: dict[int, np.ndarray[Any, np.dtype[np.float64]]] = {}
        self._frames: dict[int, int] = {}

    def add(self, age: int, layers: Sequence[float], features: float) -> None:
        """Count a frame.

        Args:
            age: frames since its reference.
            layers: cosine of each layer's output to the dense one, mean over tokens.
            features: the same of the tower's output.
        """
        row = np.array([*layers, features], np.float64)
        self._sums[age] = self._sums[age] + row if age in self._sums else row
        self._frames[age] = self._frames.get(age, 0) + 1

    def result(self) -> Fidelity | None:
        """Return the means; None: no frame was counted."""
        if not self._frames:
            return None
        ages = tuple(sorted(self._frames))
        frames = tuple(self._frames[age] for age in ages)
        means = np.stack([self._sums[age] / self._frames[age] for age in ages], axis=1)
        rows = [tuple(float(x) if np.isfinite(x) else None for x in row) for row in means]
        return Fidelity(ages, frames, tuple(rows[:-1]), rows[-1])


class LayerOutputs:
    """What each layer gave when it last ran; held as it came, not copied."""

    def __init__(self) -> None:
        self._found: dict[int, Tensor] = {}

    def take(self) -> tuple[Tensor, ...]:
        """Return the outputs, in order of the layers, and let go of them."""
        tokens = tuple(self._found[number] for number in sorted(self._found))
        self._found = {}
        return tokens

    def note(self, number: int, output: Tensor | tuple[Tensor, ...]) -> None:
        """Hold the output of a layer."""
        self._found[number] = output[0] if isinstance(output, tuple) else output


@contextmanager
def watch_layers(tower: TowerSpec) -> Iterator[LayerOutputs]:
    """Hold what each layer of a tower gives, dense or compressed, while inside."""
    outputs = LayerOutputs()
    handles = []
    for number, layer in enumerate(tower.layers):

        def hook(module: nn.Module, inputs: Any, output: Any, number: int = number) -> None:
            outputs.note(number, output)

        handles.append(layer.module.register_forward_hook(hook))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def token_cosines(compressed: Tensor, dense: Tensor) -> Tensor:
    """Return the cosine of each token to the dense one, [.., C] and [.., C] to float32 [..]."""
    return F.cosine_similarity(compressed.float(), dense.float(), dim=-1)


def cosines(compressed: Sequence[Tensor], dense: Sequence[Tensor]) -> list[float]:
    """Return the cosine of each pair of token tensors [.., C], mean over the tokens."""
    means = [token_cosines(one, other).mean() for one, other in zip(compressed, dense, strict=True)]
    found: list[float] = torch.stack(means).tolist() if means else []
    return found
