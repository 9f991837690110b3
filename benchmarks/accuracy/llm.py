"""The second stage: the LLM learns to answer, on the features of a tower that no longer changes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlavaOnevisionForConditionalGeneration

from benchmarks.accuracy.features import LONG, Features
from benchmarks.accuracy.model import END, TOKENS, WIDTH, vocabulary
from stc_stream.evaluate.scenes import TASKS, Question, Script, ask

CLIPS_A_STEP = 16
QUESTIONS = 40
"""Questions a clip and step; each sees the video before its moment and nothing else."""
_BLOCK = 3
"""Tokens of a question: newline, question, answer."""
_IGNORED = -100


@dataclass(frozen=True, eq=False)
class Batch:
    """Clips with the questions asked about each.

    Attributes:
        video: float32 [B, V, WIDTH], the tokens of all frames that are left.
        places: int64 [B, V], each one's place among all tokens of its clip, in rising order.
        questions, answers: int64 [B, Q] of tokens; where a clip has fewer questions, -100 stands
            for the answer.
        moments: int64 [B, Q], the last frame that each question sees.
    """

    video: Tensor
    places: Tensor
    questions: Tensor
    answers: Tensor
    moments: Tensor


def training_batch(features: Features, step: int, steps: int, seed: int, gaps: bool) -> Batch:
    """Return a step's batch.

    Args:
        features: of the training clips.
        step, steps: the step and how many there are: clips grow from 4 to 12 frames.
        seed: of the training.
        gaps: whether only a part of each frame's tokens is left: how many is random, and which.
    """
    generator = np.random.default_rng([seed, 1, step])
    frames = clip_length(step, steps)
    videos, asked = [], []
    for clip in generator.integers(len(features.scripts), size=CLIPS_A_STEP):
        first = int(generator.integers(0, LONG - frames + 1))
        backwards = bool(generator.random() < 0.5)
        script = _part_of(features.scripts[clip], first, frames, backwards)
        tokens = features.tokens[clip, first : first + frames]
        videos.append(tokens[::-1] if backwards else tokens)
        asked.append(_questions(script, generator))
    video = torch.from_numpy(np.stack(videos).astype(np.float32)).flatten(1, 2)
    places = torch.arange(frames * TOKENS).expand(CLIPS_A_STEP, -1)
    if gaps:
        video, places = _dropped(video, places, generator)
    return Batch(video, places, *encode_questions(asked))


def clip_length(step: int, steps: int) -> int:
    """Return the frames of a step's clips: short ones first, which cost a third."""
    share = step / steps
    return 4 if share < 0.2 else 8 if share < 0.45 else 12


def encode_questions(asked: list[list[Question]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the questions, answers and moments of a `Batch`, int64 [B, Q] each."""
    token = {text: number for number, text in enumerate(vocabulary())}
    most = max(map(len, asked))
    questions = torch.zeros(len(asked), most, dtype=torch.int64)
    answers = torch.full((len(asked), most), _IGNORED)
    moments = torch.zeros(len(asked), most, dtype=torch.int64)
    for row, several in enumerate(asked):
        for place, question in enumerate(several):
            questions[row, place] = token[question.text]
            answers[row, place] = token[question.answer]
            moments[row, place] = question.frame
    return questions, answers, moments


def answer_logits(
    model: LlavaOnevisionForConditionalGeneration, batch: Batch
) -> tuple[Tensor, Tensor]:
    """Answer all questions of a batch in one pass.

    Each question is a block of newline, question and answer behind its clip's tokens, at the
    positions that it would have right after its moment; it sees the frames until then and itself.

    Returns:
        Logits of each answer and of what follows it, [B, Q, vocabulary] each.
    """
    core = model.model
    rows, asked = batch.questions.shape
    embed = core.language_model.get_input_embeddings()
    newline = core.image_newline.expand(rows, asked, 1, -1)
    answers = batch.answers.clamp(min=0)
    blocks = torch.cat(
        [newline, embed(batch.questions)[:, :, None], embed(answers)[:, :, None]], dim=2
    )
    inputs = torch.cat([batch.video, blocks.flatten(1, 2)], dim=1)
    ends = (batch.moments + 1) * TOKENS
    block_places = ends[..., None] + torch.arange(_BLOCK)
    places = torch.cat([batch.places, block_places.flatten(1)], dim=1)
    hidden = core.language_model(
        inputs_embeds=inputs,
        attention_mask=_mask(batch.places, ends),
        position_ids=places,
        use_cache=False,
    ).last_hidden_state[:, batch.video.shape[1] :]
    logits = model.lm_head(hidden.view(rows, asked, _BLOCK, -1)[:, :, 1:])
    return logits[:, :, 0], logits[:, :, 1]


def llm_loss(model: LlavaOnevisionForConditionalGeneration, batch: Batch) -> Tensor:
    """Return the loss of a batch's answers, and a little for ending after one."""
    answered, after = answer_logits(model, batch)
    loss = functional.cross_entropy(
        answered.flatten(0, 1), batch.answers.flatten(), ignore_index=_IGNORED
    )
    end = torch.where(batch.answers == _IGNORED, _IGNORED, vocabulary().index(END))
    ending = functional.cross_entropy(after.flatten(0, 1), end.flatten(), ignore_index=_IGNORED)
    return loss + 0.1 * ending


@torch.no_grad()
def answers_right(model: LlavaOnevisionForConditionalGeneration, batch: Batch) -> Tensor:
    """Return which questions of a batch are answered right, bool [B, Q]; False where none is."""
    return answer_logits(model, batch)[0].argmax(-1) == batch.answers


def _part_of(script: Script, first: int, frames: int, backwards: bool) -> Script:
    """Return a run of a script's frames, in order of time or against it."""
    states = script.states[first : first + frames]
    return replace(script, states=states[::-1] if backwards else states)


def _questions(script: Script, generator: np.random.Generator) -> list[Question]:
    """Ask about each task in turn, each time after a random frame."""
    asked: list[Question] = []
    length = len(script.states)
    while len(asked) < QUESTIONS:
        for task in TASKS:
            question = ask(task, script.states, int(generator.integers(length)), generator)
            if question is not None:
                asked.append(question)
    return asked[:QUESTIONS]


def _dropped(
    video: Tensor, places: Tensor, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Leave some tokens of each frame, at least three, as many in every clip."""
    rows, tokens = places.shape
    frames = tokens // TOKENS
    kept = torch.from_numpy(generator.integers(3, TOKENS + 1, (frames, 1)))
    # A token's rank in a random order of its frame's: those of the lowest ranks are kept.
    ranks = torch.from_numpy(generator.random((rows, frames, TOKENS))).argsort(-1).argsort(-1)
    left = (ranks < kept).flatten(1)
    return video[left].view(rows, -1, WIDTH), places[left].view(rows, -1)


def _mask(video: Tensor, ends: Tensor) -> Tensor:
    """Return what may see what, bool [B, 1, S, S].

    Args:
        video: int64 [B, V], the places of the tokens that are left.
        ends: int64 [B, Q], the first place that each question doesn't see.
    """
    rows, tokens = video.shape
    asked = ends.shape[1]
    size = tokens + asked * _BLOCK
    mask = torch.zeros(rows, size, size, dtype=torch.bool)
    mask[:, :tokens, :tokens] = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    sees = (video[:, None] < ends[..., None]).repeat_interleave(_BLOCK, dim=1)
    mask[:, tokens:, :tokens] = sees
    own = torch.block_diag(*[torch.ones(_BLOCK, _BLOCK).tril()] * asked).bool()
    mask[:, tokens:, tokens:] = own
    return mask[:, None]
