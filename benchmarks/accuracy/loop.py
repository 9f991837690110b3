"""A training loop that saves its state and goes on where it stopped."""

from __future__ import annotations

import math
import os
import pickle
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

SAVE_EVERY = 120.0
"""Seconds between two saves."""


class OutOfTime(Exception):
    """The minutes given are over; the state is saved."""


class StateError(Exception):
    """A file of the state isn't there, is damaged, or belongs to another training."""


def train(
    name: str,
    weights: Iterable[nn.Parameter],
    loss: Callable[[int], Tensor],
    steps: int,
    rate: float,
    file: Path,
    stop_at: float = math.inf,
) -> None:
    """Train for a number of steps, with a warm-up and a cosine schedule that count steps alone.

    Args:
        name: shown beside the progress bar.
        weights: what is trained.
        loss: gives a step's loss; all randomness must follow from the step's number, so that a
            run that was stopped goes on as if it had not been.
        steps: how many there are in all.
        rate: the highest learning rate.
        file: of the state, read if it is there, written every two minutes and at the end.
        stop_at: time of `time.monotonic()` to stop at; one step at least is done.

    Raises:
        OutOfTime: there are steps left.
        StateError: the file is damaged, or of other weights.
    """
    weights = list(weights)
    optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    first, seconds = restore(file, weights, optimiser) if file.exists() else (0, 0.0)
    began = saved_at = time.monotonic()
    average = math.nan
    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]}"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=steps, completed=first, loss="–")
        for step in range(first, steps):
            for group in optimiser.param_groups:
                group["lr"] = rate * _share_of_rate(step, steps)
            value = loss(step)
            optimiser.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            now = value.item()
            average = now if math.isnan(average) else 0.98 * average + 0.02 * now
            done = step + 1
            progress.update(task, completed=done, loss=f"{average:.3f}")
            at = time.monotonic()
            if at >= stop_at or done == steps or at - saved_at > SAVE_EVERY:
                _save(file, done, seconds + at - began, weights, optimiser)
                saved_at = at
            if at >= stop_at and done < steps:
                raise OutOfTime(f"{name}: {done} of {steps} steps are done; run again to go on")


def restore(
    file: Path, weights: Sequence[nn.Parameter], optimiser: torch.optim.Optimizer | None = None
) -> tuple[int, float]:
    """Read a state into weights and, where there is one, their optimiser.

    Returns:
        The steps done, and the seconds that they took.

    Raises:
        StateError: the file isn't there, is damaged, or is of other weights.
    """
    if not file.exists():
        raise StateError(f"{file} isn't there: nothing has been trained yet")
    try:
        saved = torch.load(file, weights_only=True)
        values = saved["weights"]
        if [value.shape for value in values] != [weight.shape for weight in weights]:
            raise ValueError("it holds weights of other shapes")
        if optimiser is not None:
            optimiser.load_state_dict(saved["optimiser"])
        with torch.no_grad():
            for weight, value in zip(weights, values, strict=True):
                weight.copy_(value)
        return int(saved["step"]), float(saved["seconds"])
    except (
        *(RuntimeError, ValueError, TypeError, AttributeError, LookupError, EOFError),
        pickle.UnpicklingError,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise StateError(
            f"{file} can't be used; delete it to begin this stage anew ({reason})"
        ) from error


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place, then put it there: nobody ever finds a part of it."""
    partial = file.with_name(file.name + ".partial")
    write(partial)
    os.replace(partial, file)


def _save(
    file: Path,
    done: int,
    seconds: float,
    weights: Sequence[nn.Parameter],
    optimiser: torch.optim.Optimizer,
) -> None:
    values = {
        "step": done,
        "seconds": seconds,
        "weights": [weight.data for weight in weights],
        "optimiser": optimiser.state_dict(),
    }
    write_whole(file, lambda partial: torch.save(values, partial))


def _share_of_rate(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
