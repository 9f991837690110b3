"""Small video LLMs with random weights, what the stock model makes of a video, and clips."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

if TYPE_CHECKING:
    from stc_stream import SessionProcessor

QUESTION = "What is on the table?"


FAMILIES = ("LLaVA-OneVision", "Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL")
only_llava = pytest.mark.parametrize("family", ["LLaVA-OneVision"])
"""For what depends on no family, or on this one's numbers."""


@dataclass(frozen=True, eq=False)
class Case:
    """A model with its processor, and the stock model's own way from frames to logits.

    As it stands for LLaVA-OneVision; a subclass says what is another in other families.
    """

    model: Any
    processor: SessionProcessor
    deep = 1

    @property
    def video_token(self) -> int:
        return self.model.config.video_token_id

    def tokens(self, frames: Tensor) -> int:
        """Return the tokens of a temporal patch of such frames (T)."""
        return 16

    def patches(self, frames: Tensor) -> int:
        """Return how many temporal patches the stock processor makes of frames."""
        return -(-len(frames) // self.deep)

    def block(self, frames: Tensor) -> int:
        """Return the tokens that the LLM gets of a temporal patch, text around it included."""
        return self.tokens(frames)

    def placeholders(self, frames: Tensor) -> int:
        """Return how many video tokens stand for frames in a prompt."""
        return self.tokens(frames) * self.patches(frames) + 1

    def places(self, frames: Tensor) -> Tensor:
        """Return where all tokens of frames are in a prompt, int64 [P, T]."""
        ids = self.inputs(frames)["input_ids"][0]
        count, span = self.patches(frames), self.tokens(frames)
        return (ids == self.video_token).nonzero()[: count * span, 0].view(count, span)

    def videos(self, frames: Tensor) -> dict[str, Any]:
        """Return what the stock processor makes of a video."""
        return {"pixel_values_videos": self.pixels(frames)}

    def pixels(self, frames: Tensor) -> Tensor:
        """Return pixel values as LLaVA-OneVision takes them, [1, F, 3, H, W]."""
        return self.processor.pixels(frames)[None]

    def inputs(self, frames: Tensor, question: str = QUESTION) -> dict[str, Any]:
        """Return what the stock processor gives the stock model, as streaming.md says."""
        prompt = self.processor.prompt(question, video=True)
        placeholders = [self.video_token] * self.placeholders(frames)
        ids = torch.tensor([[*prompt.before, *placeholders, *prompt.after]])
        return self.with_ids(self.videos(frames), ids)

    def with_ids(self, inputs: dict[str, Any], ids: Tensor) -> dict[str, Any]:
        """Return inputs of the stock model with other tokens around the same videos."""
        return {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def together(self, rows: list[dict[str, Any]], pad: int = 0) -> dict[str, Any]:
        """Return inputs of several prompts as one batch, padded on the left."""
        longest = max(row["input_ids"].shape[1] for row in rows)
        whole = {}
        for name in rows[0]:
            values = [row[name] for row in rows]
            if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
                fill = pad if name == "input_ids" else 0
                values = [
                    torch.nn.functional.pad(own, (longest - own.shape[1], 0), value=fill)
                    for own in values
                ]
            whole[name] = torch.cat(values)
        return whole

    @torch.no_grad()
    def logits(self, frames: Tensor, question: str = QUESTION) -> Tensor:
        """Return the stock model's logits of the first token of an answer, [vocabulary]."""
        return self.run(self.inputs(frames, question))[-1]

    @torch.no_grad()
    def run(self, inputs: dict[str, Any]) -> Tensor:
        """Return the stock model's logits, [S, vocabulary]."""
        return self.model(**{**inputs, "attention_mask": None}).logits[0]

    @torch.no_grad()
    def embedded(self, frames: Tensor, question: str = QUESTION) -> Tensor:
        """Return the LLM's input in the stock path, [S, D]: text, video, text."""
        ids = self.inputs(frames, question)["input_ids"][0]
        embedded = self.model.get_input_embeddings()(ids)
        embedded[ids == self.video_token] = self.features(frames)
        return embedded

    @torch.no_grad()
    def run_embedded(
        self, frames: Tensor, rows: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Return the logits behind these rows of `embedded`, or all, [vocabulary].

        Args:
            mask: added to the scores, [S, S]; None: causal.
        """
        whole = self.embedded(frames)
        rows = torch.arange(len(whole)) if rows is None else rows
        return self.model(
            inputs_embeds=whole[rows][None],
            attention_mask=None if mask is None else mask[None, None],
            position_ids=None if self.deep == 1 else self.positions(frames)[..., rows],
        ).logits[0, -1]

    def features(self, frames: Tensor) -> Tensor:
        """Return what stands in the places of a video's tokens, [n, D]."""
        core = self.model.model
        features = core.get_video_features(self.pixels(frames), return_dict=True).pooler_output
        return torch.cat([features[0, : 16 * len(frames)], core.image_newline[None]])

    def positions(self, frames: Tensor, question: str = QUESTION) -> Tensor:
        """Return the positions of all tokens in the stock path, [1, S] or [3, 1, S]."""
        return torch.arange(self.inputs(frames, question)["input_ids"].shape[1])[None]


class QwenCase(Case):
    """Two frames make a temporal patch; positions have three axes."""

    deep = 2

    def tokens(self, frames: Tensor) -> int:
        height, width = self.processor.pixels(frames).shape[2:]
        return height * width // 8**2

    def placeholders(self, frames: Tensor) -> int:
        return self.tokens(frames) * self.patches(frames)

    def videos(self, frames: Tensor) -> dict[str, Any]:
        pixels = self.processor.pixels(frames)
        if len(pixels) % 2:
            pixels = torch.cat([pixels, pixels[-1:]])
        patches, grid = patched(pixels)
        own = {"pixel_values_videos": patches, "video_grid_thw": grid}
        if self.model.config.model_type == "qwen2_5_vl":
            own["second_per_grid_ts"] = torch.tensor([2 / 24])
        return own

    def with_ids(self, inputs: dict[str, Any], ids: Tensor) -> dict[str, Any]:
        inputs = super().with_ids(inputs, ids)
        if "mm_token_type_ids" in signature(self.model.forward).parameters:
            inputs["mm_token_type_ids"] = 2 * (ids == self.video_token).int()
        return inputs

    def features(self, frames: Tensor) -> Tensor:
        videos = self.videos(frames)
        output = self.model.model.get_video_features(
            videos["pixel_values_videos"], videos["video_grid_thw"], return_dict=True
        )
        return torch.cat(tuple(output.pooler_output))

    def positions(self, frames: Tensor, question: str = QUESTION) -> Tensor:
        inputs = self.inputs(frames, question)
        rope_index = self.model.model.get_rope_index
        known = signature(rope_index).parameters
        return rope_index(**{name: inputs[name] for name in inputs if name in known})[0]


class Qwen3Case(QwenCase):
    """Times stand before temporal patches as text, and the LLM gets features of several layers."""

    def block(self, frames: Tensor) -> int:
        return self.tokens(frames) + len("<0.0 seconds>") + 2

    def inputs(self, frames: Tensor, question: str = QUESTION) -> dict[str, Any]:
        from transformers import ProcessorMixin

        tokens = "<|video_pad|>" * self.tokens(frames)
        last = len(frames) - 1
        times = [(first + min(first + 1, last)) / 2 / 24 for first in range(0, len(frames), 2)]
        video = "".join(
            f"<{time:.1f} seconds><|vision_start|>{tokens}<|vision_end|>" for time in times
        )
        content = [{"type": "video"}, {"type": "text", "text": question}]
        text = self.processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.processor.template,
            tokenize=False,
            add_generation_prompt=True,
        )
        place = "<|video_pad|>"
        if not hasattr(ProcessorMixin, "replace_video_token"):
            # As in transformers 5.0: what is around the video is a part of it.
            place = f"<|vision_start|>{place}<|vision_end|>"
        assert place in text
        ids = self.processor.tokenizer(text.replace(place, video))["input_ids"]
        return self.with_ids(self.videos(frames), torch.tensor([ids]))

    @torch.no_grad()
    def run_embedded(
        self, frames: Tensor, rows: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        # Not above: transformers looks for torchvision once, before the path to it is known.
        from transformers import DynamicCache

        videos, core = self.videos(frames), self.model.model
        output = core.get_video_features(
            videos["pixel_values_videos"], videos["video_grid_thw"], return_dict=True
        )
        whole = self.embedded(frames)
        rows = torch.arange(len(whole)) if rows is None else rows
        ids = self.inputs(frames)["input_ids"][0]
        video = ids[rows] == self.video_token
        # Which of the video's tokens are among the rows.
        kept = (ids == self.video_token).cumsum(0)[rows][video] - 1
        levels = [
            level if isinstance(level, Tensor) else torch.cat(tuple(level))
            for level in output.deepstack_features
        ]
        hidden = core.language_model(
            inputs_embeds=whole[rows][None],
            attention_mask=None if mask is None else mask[None, None],
            position_ids=self.positions(frames)[..., rows],
            visual_pos_masks=video[None],
            deepstack_visual_embeds=[level[kept] for level in levels],
            # In transformers 5.0 gaps between positions would be taken for another sequence.
            past_key_values=DynamicCache(config=core.language_model.config),
        ).last_hidden_state
        return self.model.lm_head(hidden)[0, -1]


def patched(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return patches of 4 pixels, two by two next to each other and two frames deep, and the grid.

    Written out, as the definition of what the stock processor does.
    """
    frames, _, height, width = pixels.shape
    patches = [
        pixels[t : t + 2, :, y + i : y + i + 4, x + j : x + j + 4].transpose(0, 1).flatten()
        for t in range(0, frames, 2)
        for y in range(0, height, 8)
        for x in range(0, width, 8)
        for i in (0, 4)
        for j in (0, 4)
    ]
    return torch.stack(patches), torch.tensor([[frames // 2, height // 4, width // 4]])


def make_case(seed: int, family: str = "LLaVA-OneVision", **sizes: Any) -> Case:
    """Return a model whose logits depend on every frame, and on their order."""
    # Not above: transformers looks for torchvision once, before the path to it is known.
    from stc_stream.session import untrained

    if family == "LLaVA-OneVision":
        build = untrained.build_llava_onevision
        kind, settings = Case, untrained.LlavaSizes(**sizes)
    else:
        name = family.replace("-", "_").replace(".", "_").lower()
        build = getattr(untrained, f"build_{name}")
        kind = Qwen3Case if family == "Qwen3-VL" else QwenCase
        # Qwen3-VL's limits are those of two frames together.
        limits = {"pixels": (512, 2048)} if family == "Qwen3-VL" else {}
        settings = untrained.QwenSizes(**{**limits, **sizes})
    model, processor = build(settings, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.mul_(2)
            elif weight.dim() == 1:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return kind(model, processor)


@pytest.fixture(autouse=True)
def one_thread():
    """Spare such small models the waiting of threads for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def case(seed: int, family: str) -> Case:
    return make_case(seed, family)


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
