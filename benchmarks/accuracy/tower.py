"""The first stage: the tower and the projector learn what each patch shows."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaOnevisionForConditionalGeneration

from benchmarks.accuracy.model import GRID, TOKENS, WIDTH
from stc_stream.evaluate.scenes import FRAME_SIZE, PATCH_SIZE, Script, make_clip
from stc_stream.evaluate.scenes.script import COLOURS, PATTERNS, SIZE

NOTHING = 0
_SQUARE = 1
_SIGN = _SQUARE + len(COLOURS) * len(PATTERNS)
_RING = _SIGN + 10
LABELS = _RING + len(COLOURS)
"""What a patch may show: nothing of interest, a square's colour and pattern, a digit, a ring."""

CLIPS = 12
"""Clips a step."""
FRAMES_A_CLIP = 3
_NOTHING_WEIGHT = 0.1


class Heads(nn.Module):
    """What the tower is trained through, thrown away afterwards.

    Attributes:
        patch: what a patch shows.
        shows: what a pooled token shows, several things perhaps.
        place: which of a frame's pooled tokens it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(WIDTH, LABELS)
        self.shows = nn.Linear(WIDTH, LABELS)
        self.place = nn.Linear(WIDTH, TOKENS)


def build_heads(seed: int) -> Heads:
    """Return heads with random weights that follow from a seed."""
    torch.manual_seed(seed)
    return Heads()


def patch_labels(script: Script, frame: int) -> NDArray[np.int64]:
    """Return what each patch of a frame shows, int64 [GRID, GRID].

    That is the object that covers most of the patch, and at least a third of it.
    """
    state = script.states[frame]
    shown = np.zeros((FRAME_SIZE, FRAME_SIZE), np.int64)

    def mark(at: tuple[int, int], label: int) -> None:
        x, y = at
        shown[y : y + SIZE, x : x + SIZE] = label

    for square in state.squares:
        kind = COLOURS.index(square.colour) * len(PATTERNS) + PATTERNS.index(square.pattern)
        mark((square.x, square.y), _SQUARE + kind)
    if state.ring is not None:
        mark(script.corner, _RING + COLOURS.index(state.ring))
    mark(script.sign, _SIGN + state.digit)
    patches = shown.reshape(GRID, PATCH_SIZE, GRID, PATCH_SIZE).swapaxes(1, 2)
    patches = patches.reshape(GRID, GRID, -1, 1)
    covered = (patches == np.arange(1, LABELS)).mean(axis=2)
    return np.where(covered.max(axis=-1) >= 1 / 3, 1 + covered.argmax(axis=-1), NOTHING)


def frames_with_labels(step: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return a step's frames, float32 [B, 3, H, W], and what they show, int64 [B, GRID, GRID]."""
    generator = np.random.default_rng([seed, step])
    frames, labels = [], []
    for _ in range(CLIPS):
        clip = make_clip("train", int(generator.integers(2**31)))
        for frame in generator.choice(len(clip.frames), FRAMES_A_CLIP, replace=False):
            frames.append(clip.frames[frame])
            labels.append(patch_labels(clip.script, int(frame)))
    return pixels(np.stack(frames)), torch.from_numpy(np.stack(labels))


def pixels(frames: NDArray[np.uint8]) -> Tensor:
    """Return frames as the model's processor hands them to the tower: float32, -1 to 1."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def hidden_states(model: LlavaOnevisionForConditionalGeneration, frames: Tensor) -> Tensor:
    """Return what the tower makes of frames [B, 3, H, W]: [B, GRID², WIDTH]."""
    states: Tensor = model.model.vision_tower(frames, output_hidden_states=True).hidden_states[-1]
    return states


def pooled(model: LlavaOnevisionForConditionalGeneration, hidden: Tensor) -> Tensor:
    """Return what the LLM sees of the tower's output: [B, TOKENS, WIDTH]."""
    tokens: Tensor = model.model.apply_pooling(model.model.multi_modal_projector(hidden))
    return tokens


def tower_loss(
    model: LlavaOnevisionForConditionalGeneration, heads: Heads, step: int, seed: int
) -> Tensor:
    """Return a training step's loss; its frames follow from the step and the seed."""
    return labels_loss(model, heads, *frames_with_labels(step, seed))


def labels_loss(
    model: LlavaOnevisionForConditionalGeneration, heads: Heads, frames: Tensor, labels: Tensor
) -> Tensor:
    """Return the loss of labels of patches, of pooled tokens, and of where each of those is.

    Args:
        model, heads: are trained.
        frames: float32 [B, 3, H, W], -1 to 1.
        labels: int64 [B, GRID, GRID].
    """
    hidden = hidden_states(model, frames)
    tokens = pooled(model, hidden)
    importance = torch.ones(LABELS)
    importance[NOTHING] = _NOTHING_WEIGHT
    patch = functional.cross_entropy(
        heads.patch(hidden).flatten(0, 1), labels.flatten(), importance
    )
    shown = functional.one_hot(labels, LABELS).float()
    half = GRID // 2
    shown = shown.view(-1, half, 2, half, 2, LABELS).amax(dim=(2, 4)).flatten(1, 2)
    shows = functional.binary_cross_entropy_with_logits(
        heads.shows(tokens)[..., 1:], shown[..., 1:], pos_weight=torch.tensor(8.0)
    )
    places = torch.arange(TOKENS).expand(len(frames), -1)
    place = functional.cross_entropy(heads.place(tokens).flatten(0, 1), places.flatten())
    return patch + 5 * shows + 0.3 * place


@torch.no_grad()
def patch_accuracy(
    model: LlavaOnevisionForConditionalGeneration, heads: Heads, clips: int
) -> tuple[float, float]:
    """Return the share of validation patches told right: of those that show something, of all."""
    right = shown = something = total = 0
    for number in range(clips):
        clip = make_clip("validation", number)
        labels = torch.from_numpy(
            np.stack([patch_labels(clip.script, frame) for frame in range(len(clip.frames))])
        ).flatten(1)
        found = heads.patch(hidden_states(model, pixels(clip.frames))).argmax(-1) == labels
        right += int(found.sum())
        total += found.numel()
        something += int((labels != NOTHING).sum())
        shown += int(found[labels != NOTHING].sum())
    return shown / something, right / total
