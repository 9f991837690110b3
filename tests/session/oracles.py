"""What memories should answer, computed plainly: a run with a mask, or with keys kept unturned."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from stc_stream import RecentMemory, StreamingSession
from stc_stream.session.memory import KeptFrame


def kept_frames(case: Any, frames: Tensor, **settings: Any) -> list[KeptFrame]:
    """Return what a session keeps of frames, before the LLM."""
    many = {**settings, "memory": RecentMemory(len(frames)), "positions": "contiguous"}
    with StreamingSession(case.model, case.processor, **many) as session:
        session.feed(frames)
        return list(session._stream.cache._frames)


def stream_blocks(case: Any, kept: list[KeptFrame], positions: str) -> list[tuple[Tensor, Tensor]]:
    """Return the LLM's inputs [n, D] and positions [n]: the text before, then each frame."""
    text = case.model.get_input_embeddings()(torch.tensor(case.processor.prompt("?", True).before))
    blocks, first = [(text, torch.arange(len(text)))], len(text)
    for frame in kept:
        own = frame.index if positions == "kept" else torch.arange(len(frame.index))
        blocks.append((frame.tokens, first + own))
        first += 16 if positions == "kept" else len(frame.index)
    return blocks


def question_block(case: Any, question: str) -> Tensor:
    """Return the LLM's input of a question: the newline that ends a video, and text [n, D]."""
    ids = torch.tensor(case.processor.prompt(question, True).after)
    return torch.cat([case.model.model.image_newline[None], case.model.get_input_embeddings()(ids)])


@torch.no_grad()
def masked_run(
    case: Any,
    blocks: list[tuple[Tensor, Tensor]],
    question: Tensor,
    first: int,
    sink: int,
    window: int,
) -> Tensor:
    """Return logits after one run of everything, with an explicit mask.

    A token of a block sees sinks, itself, what is before it in its block, and of what is before
    its block as much as fits into the window with the block; the question, the sinks and a window.

    Args:
        first: position of the question.
    """
    inputs = torch.cat([*(inputs for inputs, _ in blocks), question])
    places = torch.cat([*(places for _, places in blocks), first + torch.arange(len(question))])
    stream = len(inputs) - len(question)
    seen, end = torch.ones(len(inputs), len(inputs)).tril().bool(), 0
    number = torch.arange(len(inputs))
    for tokens, _ in blocks:
        end += len(tokens)
        hidden = (number >= sink) & (number < end - window)
        seen[end - len(tokens) : end, hidden] = False
    seen[stream:, (number >= sink) & (number < stream - window)] = False
    return run_with_mask(case, inputs, places, seen)


@torch.no_grad()
def run_with_mask(case: Any, inputs: Tensor, places: Tensor, seen: Tensor) -> Tensor:
    """Return the logits after the last input, given which tokens see which, bool [n, n]."""
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    output = case.model.model.language_model(
        inputs_embeds=inputs[None],
        position_ids=places[None],
        attention_mask=mask[None, None],
        use_cache=False,
    )
    return case.model.lm_head(output.last_hidden_state[0, -1])


class PlainLLM:
    """A Qwen2 in plain PyTorch, which keeps all keys unturned, [H, N, D] a layer.

    A block sees of its past what it is told to, at the positions that it is told.
    """

    def __init__(self, case: Any) -> None:
        self._llm, self._head = case.model.model.language_model, case.model.lm_head
        config = self._llm.config
        self.heads = config.num_attention_heads
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.width = config.hidden_size // config.num_attention_heads
        self.theta = config.rope_parameters["rope_theta"]
        empty = torch.zeros(config.num_key_value_heads, 0, self.width)
        self.keys = [empty] * config.num_hidden_layers
        self.values = [empty] * config.num_hidden_layers

    @property
    def held(self) -> int:
        return self.keys[0].shape[1]

    @torch.no_grad()
    def run(self, inputs: Tensor, positions: Tensor, past: Any, write: bool = True) -> Tensor:
        """Return logits after the last input.

        Args:
            inputs: [n, D].
            positions: [n].
            past: (numbers of tokens [m], their positions [m]); or a function from the layer's
                number and its unturned queries [heads, n, width] to that.
        """
        hidden = inputs
        for number, layer in enumerate(self._llm.layers):
            states = layer.input_layernorm(hidden)
            attention = layer.self_attn
            queries, keys, values = (
                project(states).unflatten(1, (-1, self.width)).transpose(0, 1)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            seen, places = past(number, queries) if callable(past) else past
            all_keys = torch.cat([self.keys[number][:, seen], keys], 1)
            all_values = torch.cat([self.values[number][:, seen], values], 1)
            turned = self._turn(all_keys, torch.cat([places, positions]))
            scores = self._turn(queries, positions) @ self._grouped(turned).transpose(1, 2)
            causal = torch.ones(len(inputs), len(inputs)).tril().bool()
            visible = torch.cat([torch.ones(len(inputs), len(seen)).bool(), causal], 1)
            scores = (scores / math.sqrt(self.width)).masked_fill(~visible, -torch.inf)
            found = scores.softmax(-1) @ self._grouped(all_values)
            hidden = hidden + attention.o_proj(found.transpose(0, 1).flatten(1))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            if write:
                self.keys[number] = torch.cat([self.keys[number], keys], 1)
                self.values[number] = torch.cat([self.values[number], values], 1)
        return self._head(self._llm.norm(hidden[-1]))

    def _grouped(self, tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(self.groups, 0)

    def _turn(self, tensor: Tensor, positions: Tensor) -> Tensor:
        """Turn each pair of dimensions, as complex numbers."""
        half = self.width // 2
        angles = positions[:, None] * self.theta ** -(torch.arange(half).double() / half)
        pairs = torch.complex(tensor[..., :half].double(), tensor[..., half:].double())
        turned = pairs * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([turned.real, turned.imag], -1).to(tensor.dtype)


def window_blocks(held: int, new: int, sink: int, window: int) -> Tensor:
    """Return the numbers of the tokens that a block of `new` sees of those before it."""
    number = torch.arange(held)
    return number[(number < sink) | (number >= held + new - window)]
