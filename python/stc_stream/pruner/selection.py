"""What a strategy is asked, and what it answers, checked: a mistake is named where it was made."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from stc_stream.pruner.strategies import Kept, PruningStrategy
from stc_stream.pruner.strategies.anchored import keeps_highest_scores
from stc_stream.pruner.strategies.strategy import check_selection


def check_tokens(tokens: Tensor) -> None:
    """Refuse tokens that the ops would, for a strategy that calls none of them.

    Raises:
        TypeError: a dtype that is not float32, float16 or bfloat16.
        ValueError: tokens that require grad in grad mode.
    """
    if tokens.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        found = str(tokens.dtype).removeprefix("torch.")
        raise TypeError(
            f"tokens must have dtype float32, float16 or bfloat16, but has dtype {found}"
        )
    if tokens.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "tokens must not require grad in grad mode (pruning has no gradient), but does"
        )


def select(
    strategy: PruningStrategy, tokens: Tensor, past: Any, budget: int
) -> tuple[Kept, Kept, Any]:
    """Return what a strategy selects of frames [F, T, D], checked.

    Raises:
        TypeError, ValueError: as `check_selection`; no tuple of three.
    """
    if keeps_highest_scores(strategy):
        return strategy.select(tokens, past, budget)
    name = type(strategy).__name__
    selected: object = strategy.select(tokens, past, budget)
    if not isinstance(selected, tuple) or len(selected) != 3:
        found = type(selected).__name__
        if isinstance(selected, tuple):
            found = f"tuple of {len(selected)}"
        raise TypeError(
            f"{name}.select must return a tuple (tokens, places, past), but returned a {found}"
        )
    kept, index, past = selected
    check_selection(name, kept, index, tokens)
    return kept, index, past


def check_past(strategy: PruningStrategy, tokens: Tensor, past: object) -> None:
    """Refuse a past that may grow with its stream, or change with the caller's tokens.

    Args:
        strategy: whose past it is.
        tokens: the frames of the call, [F, T, D].
        past: what is to be remembered.

    Raises:
        ValueError: more bytes of tensors than `max_past_bytes`, or a view of the tokens.
    """
    name = type(strategy).__name__
    storages = {}
    for tensor in held_tensors(past):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    if tokens.untyped_storage().data_ptr() in storages:
        raise ValueError(
            f"{name} must not remember a view of the tokens, which holds all frames of the call "
            "and changes with them: remember a clone"
        )
    most, held = _max_past_bytes(strategy, tokens), sum(storages.values())
    if held > most:
        raise ValueError(
            f"{name} must remember at most {most} bytes of a stream (max_past_bytes), but "
            f"remembers {held}: a past must not grow with its stream"
        )


def held_tensors(past: object) -> Iterator[Tensor]:
    """Return the tensors of a past: in containers, and in objects with attributes."""
    if isinstance(past, Tensor):
        yield past
    elif isinstance(past, Mapping):
        yield from chain.from_iterable(map(held_tensors, past.values()))
    elif isinstance(past, list | tuple | set | frozenset | deque):
        yield from chain.from_iterable(map(held_tensors, past))
    elif dataclasses.is_dataclass(past):
        fields = (getattr(past, field.name) for field in dataclasses.fields(past))
        yield from chain.from_iterable(map(held_tensors, fields))
    elif hasattr(past, "__dict__"):
        yield from chain.from_iterable(map(held_tensors, vars(past).values()))


def _max_past_bytes(strategy: PruningStrategy, tokens: Tensor) -> int:
    # Any object with `select` is a strategy, whether it says how much it remembers or not.
    own = getattr(type(strategy), "max_past_bytes", PruningStrategy.max_past_bytes)
    most: int = own(strategy, *tokens.shape[1:])
    return most
