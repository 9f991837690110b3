"""What a strategy is asked, and what it answers, checked: a mistake is named where it was made."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
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
    waiting, seen = [past], {id(past): past}
    while waiting:
        held = waiting.pop()
        if isinstance(held, Tensor):
            yield held
        # What holds itself, or holds another twice, is looked into once.
        new = {id(each): each for each in _parts(held) if id(each) not in seen}
        seen |= new
        waiting += new.values()


def _parts(held: object) -> Iterable[object]:
    if isinstance(held, Tensor | type):
        return ()
    if isinstance(held, Mapping):
        return held.values()
    if isinstance(held, list | tuple | set | frozenset | deque):
        return held
    if dataclasses.is_dataclass(held):
        return [getattr(held, field.name) for field in dataclasses.fields(held)]
    return vars(held).values() if hasattr(held, "__dict__") else ()


def _max_past_bytes(strategy: PruningStrategy, tokens: Tensor) -> int:
    # Any object with `select` is a strategy, whether it says how much it remembers or not.
    own = getattr(type(strategy), "max_past_bytes", PruningStrategy.max_past_bytes)
    most: int = own(strategy, *tokens.shape[1:])
    return most
