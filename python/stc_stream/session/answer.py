"""An answer on its way: token by token, on a fork of what the session holds."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stc_stream.session.memory import SessionCache
from stc_stream.session.models import VideoModel

Choose = Callable[[Tensor], int]
"""Chooses the next token from its logits, float32 [vocabulary]."""


def most_likely(logits: Tensor) -> int:
    """Choose the token of the highest logit."""
    return int(logits.argmax())


def chosen(choose: Choose, logits: Tensor) -> int:
    """Return the token that a function of the user's own chooses, which may be a tensor of one."""
    found = choose(logits)
    try:
        token = operator.index(found)
    except (TypeError, RuntimeError):
        token = -1
    if not 0 <= token < len(logits):
        raise ValueError(
            f"choose must return a token, 0..{len(logits) - 1}, but returned {found!r}"
        )
    return token


class Answer:
    """What was asked, behind the stream's tokens, and what was answered so far.

    Args:
        model: the session's.
        cache: a fork of the stream's.
        inputs: what comes first, the question at its end, as the LLM takes it, [n, D], n ≥ 1.
        positions: of these, int64 [axes, n].
        position: that of the first token of the answer.
        room: for how many tokens of it the model's context has room.

    Attributes:
        logits: of the next token, float32 [vocabulary].
    """

    def __init__(
        self,
        model: VideoModel,
        cache: SessionCache,
        inputs: Tensor,
        positions: Tensor,
        position: int,
        room: int,
    ) -> None:
        self._model = model
        self._cache = cache
        self._position = position
        self._end = position + room
        with torch.no_grad():
            hidden = model.run(inputs, positions, cache)
            self.logits = model.logits(hidden[-1:])[0]

    def add(self, token: int) -> None:
        """Put a token behind it."""
        with torch.no_grad():
            self.logits = self._run(self._model.embed([token]))

    @property
    def room(self) -> int:
        """How many tokens may follow, for the model's context."""
        return self._end - self._position

    def score(self, tokens: list[int]) -> Tensor:
        """Return the log-probability of these tokens as what follows, a float32 scalar."""
        total = self.logits.log_softmax(-1)[tokens[0]]
        if len(tokens) > 1:
            first, saved = self._position, self._cache.save()
            with torch.no_grad():
                hidden = self._advance(self._model.embed(tokens[:-1]))
                logits = self._model.logits(hidden)
            self._position = first
            self._cache.restore(saved)
            rest = torch.tensor(tokens[1:], device=logits.device)[:, None]
            total = total + logits.log_softmax(-1).gather(1, rest).sum()
        return total

    def _run(self, inputs: Tensor) -> Tensor:
        """Run the LLM on what comes next; return the logits after it."""
        return self._model.logits(self._advance(inputs)[-1:])[0]

    def _advance(self, inputs: Tensor) -> Tensor:
        """Run the LLM on what comes next; return its output."""
        positions = self._model.text_positions(self._position, len(inputs))
        hidden = self._model.run(inputs, positions, self._cache)
        self._position += len(inputs)
        return hidden


class Text:
    """The text of tokens that come one by one.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._given = 0

    def add(self, token: int) -> str:
        """Return what a token adds; nothing while a character is not whole."""
        self._tokens.append(token)
        text = self._decoded()
        return "" if text.endswith("\N{REPLACEMENT CHARACTER}") else self._more(text)

    def rest(self) -> str:
        """Return what was held back."""
        return self._more(self._decoded())

    def _decoded(self) -> str:
        text: str = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        return text

    def _more(self, text: str) -> str:
        more = text[self._given :]
        self._given = max(self._given, len(text))
        return more
