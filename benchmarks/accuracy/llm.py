"""The second stage: the LLM learns to answer, on the features of a tower that no longer changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor
from torch.nn import functional
from transformers import LlavaOnevisionForConditionalGeneration

from benchmarks.accuracy.model import END, TOKENS, WIDTH, vocabulary
from benchmarks.accuracy.tower import pixels
from stc_stream.evaluate.scenes import TASKS, Question, Script, ask, make_clip
from stc_stream.evaluate.scenes.script import part_of

LONG = 16
"""Frames of a training clip; a step sees a run of them, forwards or backwards."""
CLIPS_A_STEP = 16
QUESTIONS = 40
"""Questions a clip and step; each sees the video before its moment and nothing else."""
_BLOCK = 3
_IGNORED = -100


@dataclass(frozen=True, eq=False)
class Features:
    """What the tower, the projector and the pooling make of the training clips.

    Attributes:
        tokens: float16 [clips, LONG, TOKENS, WIDTH].
        scripts: what happens in each clip.
    """

    tokens: NDArray[np.float16]
    scripts: list[Script]


@torch.no_grad()
def make_features(
    model: LlavaOnevisionForConditionalGeneration, clips: int, file: Path
) -> Features:
    """Encode training clips, or read what was encoded before; an interrupted run goes on."""
    shape = (clips, LONG, TOKENS, WIDTH)
    done_file = file.with_suffix(".done")
    done = int(done_file.read_text()) if done_file.exists() else 0
    tokens = np.lib.format.open_memmap(
        file, mode="r+" if file.exists() else "w+", dtype=np.float16, shape=shape
    )
    scripts = []
    for number in track(range(clips), "features"):
        clip = make_clip("train", number, LONG)
        scripts.append(clip.script)
        if number < done:
            continue
        tokens[number] = pooled_tokens(model, clip.frames).half().numpy()
        if (number + 1) % 50 == 0 or number + 1 == clips:
            tokens.flush()
            done_file.write_text(str(number + 1))
    return Features(tokens, scripts)


@torch.no_grad()
def pooled_tokens(
    model: LlavaOnevisionForConditionalGeneration, frames: NDArray[np.uint8]
) -> Tensor:
    """Return the tokens that the LLM sees of a clip's frames, float32 [F, TOKENS, WIDTH]."""
    core = model.model
    hidden = core.vision_tower(pixels(frames), output_hidden_states=True).hidden_states[-1]
    pooled: Tensor = core.apply_pooling(core.multi_modal_projector(hidden))
    return pooled


@dataclass(frozen=True, eq=False)
class Batch:
    """Clips with the questions asked about each.

    Attributes:
        video: float32 [B, V, WIDTH], the tokens of all frames that are left.
        places: int64 [B, V], each one's place among all tokens of its clip.
        questions, answers: int64 [B, Q] of tokens; no answer is -100.
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
        gaps: whether a random number of tokens, chosen uniformly, is left of each frame.
    """
    generator = np.random.default_rng([seed, 1, step])
    frames = clip_length(step, steps)
    videos, asked = [], []
    for clip in generator.integers(len(features.scripts), size=CLIPS_A_STEP):
        first = int(generator.integers(0, LONG - frames + 1))
        backwards = bool(generator.random() < 0.5)
        script = part_of(features.scripts[clip], first, frames, backwards)
        tokens = features.tokens[clip, first : first + frames]
        videos.append(tokens[::-1] if backwards else tokens)
        asked.append(_questions(script, generator))
    video = torch.from_numpy(np.stack(videos).astype(np.float32))
    places = torch.arange(frames * TOKENS).view(frames, TOKENS).expand(CLIPS_A_STEP, -1, -1)
    if gaps:
        kept = generator.integers(3, TOKENS + 1, size=frames)
        order = torch.from_numpy(generator.random(places.shape)).argsort(-1)
        pieces = [order[:, frame, : kept[frame]].sort(-1).values for frame in range(frames)]
        video = torch.cat(
            [
                video[:, frame].gather(1, piece[..., None].expand(-1, -1, WIDTH))
                for frame, piece in enumerate(pieces)
            ],
            dim=1,
        )
        places = torch.cat(
            [places[:, frame].gather(1, piece) for frame, piece in enumerate(pieces)], dim=1
        )
    else:
        video, places = video.flatten(1, 2), places.flatten(1)
    return Batch(video, places, *encode_questions(asked))


def clip_length(step: int, steps: int) -> int:
    """Return the frames of a step's clips: short ones first, which cost a third."""
    share = step / steps
    return 4 if share < 0.2 else 8 if share < 0.45 else 12


def _questions(script: Script, generator: np.random.Generator) -> list[Question]:
    asked: list[Question] = []
    length = len(script.states)
    while len(asked) < QUESTIONS:
        for task in TASKS:
            question = ask(task, script.states, int(generator.integers(length)), generator)
            if question is not None:
                asked.append(question)
    return asked[:QUESTIONS]


def encode_questions(asked: list[list[Question]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens of questions and answers, and the moments, int64 [B, Q] each; short rows padded."""
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


def answer_logits(model: LlavaOnevisionForConditionalGeneration, batch: Batch) -> tuple[Tensor, Tensor]:
    """Answer all questions of a batch in one pass.

    Each question is a block of newline, question and answer behind its clip's tokens, at the
    positions that it would have right after its moment; it sees the frames until then and itself.

    Returns:
        Logits of each answer [B, Q, vocabulary], and of what follows it.
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


def _mask(video: Tensor, ends: Tensor) -> Tensor:
    """Return what may see what, bool [B, 1, S, S]."""
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
def answers_right(
    model: LlavaOnevisionForConditionalGeneration, batch: Batch
) -> Tensor:
    """Return which questions of a batch are answered right, bool [B, Q]; False where none is."""
    return answer_logits(model, batch)[0].argmax(-1) == batch.answers
