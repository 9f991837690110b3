"""A training loop that saves its state and goes on where it stopped."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

SAVE_EVERY = 120.0
"""Seconds between two saves."""


class OutOfTime(Exception):
    """The minutes given are over; the state is saved."""


def train(
    name: str,
    weights: Iterable[nn.Parameter],
    loss: Callable[[int], Tensor],
    steps: int,
    rate: float,
    state: Path,
    stop_at: float,
) -> None:
    """Train for a number of steps, with a warm-up and a cosine schedule that count steps alone.

    Args:
        name: shown in the progress bar.
        weights: what is trained.
        loss: gives a step's loss; all randomness must follow from the step's number, so that a
            run that was stopped goes on as if it had not been.
        steps: how many there are in all.
        rate: the highest learning rate.
        state: file of the state, written every two minutes and at the end.
        stop_at: time (`time.monotonic()`) to stop at.

    Raises:
        OutOfTime: there are steps left.
    """
    weights = list(weights)
    optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    first, seconds = 0, 0.0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        first, seconds = saved["step"], saved["seconds"]
        for weight, value in zip(weights, saved["weights"], strict=True):
            weight.data.copy_(value)
        optimiser.load_state_dict(saved["optimiser"])

    began = saved_at = time.monotonic()

    def save(step: int) -> None:
        values = {
            "step": step,
            "seconds": seconds + time.monotonic() - began,
            "weights": [weight.data for weight in weights],
            "optimiser": optimiser.state_dict(),
        }
        partial = state.with_suffix(".partial")
        torch.save(values, partial)
        os.replace(partial, state)

    average = math.nan
    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=steps, completed=first, loss=average)
        for step in range(first, steps):
            for group in optimiser.param_groups:
                group["lr"] = rate * _schedule(step, steps)
            value = loss(step)
            optimiser.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            now = value.item()
            average = now if math.isnan(average) else 0.98 * average + 0.02 * now
            progress.update(task, completed=step + 1, loss=average)
            over = time.monotonic() >= stop_at and step + 1 < steps
            if over or step + 1 == steps or time.monotonic() - saved_at > SAVE_EVERY:
                save(step + 1)
                saved_at = time.monotonic()
            if over:
                raise OutOfTime(f"{name}: {step + 1} of {steps} steps done; run again to go on")


def _schedule(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
