"""Small LLaVA-OneVisions with random weights, what the stock model makes of a video, and clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

if TYPE_CHECKING:
    from stc_stream import SessionProcessor

QUESTION = "What is on the table?"


@dataclass(frozen=True, eq=False)
class Case:
    """A model with its processor, and the stock model's own way from frames to logits."""

    model: Any
    processor: SessionProcessor

    @property
    def video_token(self) -> int:
        return self.model.config.video_token_id

    def pixels(self, frames: Tensor) -> Tensor:
        """Return pixel values as the stock model takes them, [1, F, 3, H, W]."""
        return self.processor.pixels(frames)[None]

    def inputs(self, frames: Tensor, question: str = QUESTION) -> dict[str, Tensor]:
        """Return what the stock processor gives the stock model, as streaming.md says."""
        prompt = self.processor.prompt(question, video=True)
        placeholders = [self.video_token] * (16 * len(frames) + 1)
        ids = torch.tensor([[*prompt.before, *placeholders, *prompt.after]])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values_videos": self.pixels(frames),
        }

    @torch.no_grad()
    def logits(self, frames: Tensor, question: str = QUESTION) -> Tensor:
        """Return the stock model's logits of the first token of an answer, [vocabulary]."""
        inputs = self.inputs(frames, question)
        del inputs["attention_mask"]
        return self.model(**inputs).logits[0, -1]

    @torch.no_grad()
    def embedded(self, frames: Tensor, question: str = QUESTION) -> Tensor:
        """Return the LLM's input in the stock path, [S, D]: text, all tokens, newline, text."""
        core = self.model.model
        prompt = self.processor.prompt(question, video=True)
        table = core.get_input_embeddings()
        features = core.get_video_features(self.pixels(frames), return_dict=True).pooler_output
        video = [features[0, : 16 * len(frames)], core.image_newline[None]]
        before, after = (table(torch.tensor(ids)) for ids in (prompt.before, prompt.after))
        return torch.cat([before, *video, after])


def make_case(seed: int, **sizes: Any) -> Case:
    """Return a model whose logits hang on every frame, and on their order."""
    # Not above: transformers looks for torchvision once, before the path to it is known.
    from stc_stream.session.untrained import LlavaSizes, build_llava_onevision

    model, processor = build_llava_onevision(LlavaSizes(**sizes), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.mul_(2)
            elif weight.dim() == 1:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return Case(model, processor)


@pytest.fixture(autouse=True)
def one_thread():
    """Spare such small models the waiting of threads for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def case(seed: int) -> Case:
    return make_case(seed)


@pytest.fixture
def frames(generator: torch.Generator) -> Tensor:
    """Return eight frames of 40 × 56 pixels, uint8 [8, 40, 56, 3]: noise."""
    return torch.randint(0, 256, (8, 40, 56, 3), generator=generator, dtype=torch.uint8)


def steps_of_a_quarter(count: int, generator: torch.Generator) -> Tensor:
    """Return frames of which a quarter changes each time, and nothing else: uint8 [F, 32, 32, 3].

    What a selective frame recomputes of them is never a near tie, which rounding could decide.
    """
    scene = torch.randint(0, 256, (1, 32, 32, 3), generator=generator, dtype=torch.uint8)
    clip = scene.repeat(count, 1, 1, 1)
    clip[:, :16, :16] = torch.randint(
        0, 256, (count, 16, 16, 3), generator=generator, dtype=torch.uint8
    )
    return clip
