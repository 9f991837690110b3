"""The published systems: the lines of docs/systems.md put a Cacher into what is shaped as they are.

StreamForest and Dispider keep memories of their own; here is the way of their frames through the
tower, with the modules and calls that it has there, and a memory that only lists.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from examples.test_docs import blocks
from torch import Tensor, nn
from towers.shapes import EncoderOutput, LlavaSiglipLayer, LlavaSiglipTower

from stc_stream import CacherConfig
from stc_stream.cacher import Cacher

PAGE = Path(__file__).parents[2] / "docs/systems.md"
SIDE = 32


class StreamForestModel(nn.Module):
    """All frames of a video go through LLaVA's own SigLIP in one call, and into the memory."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_tower = LlavaSiglipTower(dim=32, depth=4, heads=4, image=SIDE, patch=8)
        self.mm_projector = nn.Linear(32, 16)
        self.memory: list[Tensor] = []

    def get_model(self) -> StreamForestModel:
        return self

    def get_vision_tower(self) -> LlavaSiglipTower:
        return self.vision_tower

    @torch.inference_mode()
    def generate(self, input_ids: Tensor | None, images: list[Tensor]) -> Tensor:
        features = self.get_model().get_vision_tower()(torch.cat(images))
        self.memory = [*self.get_model().mm_projector(features)]
        return torch.stack(self.memory)


class ClipTransformer(nn.Module):
    """CLIP as transformers 4 has it: masks by position, a tuple of each layer."""

    def __init__(self, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embeddings = ClipEmbeddings(dim)
        self.pre_layrnorm, self.post_layernorm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.encoder = ClipEncoder(dim, depth, heads)

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = False) -> EncoderOutput:
        hidden_states = self.pre_layrnorm(self.embeddings(pixel_values))
        return self.encoder(inputs_embeds=hidden_states, output_hidden_states=output_hidden_states)


class ClipEmbeddings(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(dim))
        self.patch_embedding = nn.Conv2d(3, dim, 8, 8, bias=False)
        self.position_embedding = nn.Embedding((SIDE // 8) ** 2 + 1, dim)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(patches), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class ClipLayer(LlavaSiglipLayer):
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        causal_attention_mask: Tensor | None,
        output_attentions: bool | None = False,
    ) -> tuple[Tensor, ...]:
        return super().forward(hidden_states, attention_mask, output_attentions)


class ClipEncoder(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ClipLayer(dim, heads) for _ in range(depth))

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        causal_attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> EncoderOutput:
        hidden_states, states = inputs_embeds, (inputs_embeds,)
        for layer in self.layers:
            (hidden_states,) = layer(
                hidden_states,
                attention_mask,
                causal_attention_mask,
                output_attentions=output_attentions,
            )
            states += (hidden_states,)
        return EncoderOutput(hidden_states, states if output_hidden_states else None)


class ClipModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision_model = ClipTransformer(32, 4, 4)

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = False) -> EncoderOutput:
        return self.vision_model(pixel_values, output_hidden_states=output_hidden_states)


def clip_of_this_version() -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    return CLIPVisionModel(
        CLIPVisionConfig(**shape, num_hidden_layers=4, image_size=SIDE, patch_size=8)
    )


class Perception(nn.Module):
    """Around CLIP: the layer before the last, without the class token."""

    def __init__(self, vision_tower: nn.Module) -> None:
        super().__init__()
        self.vision_tower, self.select_layer = vision_tower, -2

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        output = self.vision_tower(images, output_hidden_states=True)
        return output.hidden_states[self.select_layer][:, 1:]


class PerceptionDecision(nn.Module):
    def __init__(self, vision_tower: nn.Module) -> None:
        super().__init__()
        self.perception = Perception(vision_tower)


class DispiderModel(nn.Module):
    """Clips of 16 frames, [clips, 16, 3, H, W], through CLIP in blocks of 16."""

    def __init__(self, vision_tower: nn.Module) -> None:
        super().__init__()
        self.compressor = PerceptionDecision(vision_tower)

    def get_perception_decision(self) -> PerceptionDecision:
        return self.compressor

    @torch.inference_mode()
    def generate(self, input_ids: Tensor | None, images: Tensor) -> Tensor:
        blocks = images.flatten(0, 1).split(16)
        return torch.cat([self.get_perception_decision().perception(block) for block in blocks])


SYSTEMS = {
    "StreamForest": (StreamForestModel, lambda frames: [frames]),
    "Dispider": (
        lambda: DispiderModel(clip_of_this_version()),
        lambda frames: frames.unflatten(0, (-1, 16)),
    ),
    "Dispider, transformers 4": (
        lambda: DispiderModel(ClipModel()),
        lambda frames: frames.unflatten(0, (-1, 16)),
    ),
}


class Case:
    """A stand-in with random weights, and the lines of the page about it."""

    def __init__(self, name: str, seed: int) -> None:
        make, self.images = SYSTEMS[name]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = make().eval()
            for parameter in self.model.parameters():
                parameter.data.add_(0.1 * torch.randn(parameter.shape))
        system = name.partition(",")[0]
        self.attach, self.each = (
            block.code
            for block in blocks(PAGE)
            if block.not_run == f"needs {system}'s code; run by tests/examples on a stand-in"
        )
        self.scope = {"model": self.model, "input_ids": torch.zeros(1, 1, dtype=torch.int64)}

    def start(self, config: CacherConfig | None = None) -> Cacher:
        """Run the lines that attach, with these settings or their own."""
        published = "CacherConfig.paper(update_ratio=0.25, refresh_interval=4)"
        assert published in self.attach
        self.scope["config"] = config
        exec(self.attach.replace(published, published if config is None else "config"), self.scope)
        return self.scope["cacher"]

    def watch(self, frames: Tensor) -> Tensor:
        """Run the lines for each video."""
        self.scope["images"] = self.images(frames)
        exec(self.each, self.scope)
        return self.scope["output"]

    def dense(self, frames: Tensor) -> Tensor:
        return self.model.generate(None, images=self.images(frames))


@pytest.fixture(params=SYSTEMS)
def case(request: pytest.FixtureRequest, seed: int) -> Case:
    return Case(request.param, seed)


@pytest.fixture
def videos(generator: torch.Generator) -> list[Tensor]:
    """Return two videos of 32 frames: a scene each, of which a quarter changes."""
    found = []
    for _ in range(2):
        scene = torch.randn(3, SIDE, SIDE, generator=generator)
        frames = scene.repeat(32, 1, 1, 1)
        frames[:, :, :16, :16] = torch.randn(32, 3, 16, 16, generator=generator)
        found.append(frames)
    return found


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_everything_recomputed_is_dense(case, videos):
    dense = [case.dense(frames) for frames in videos]
    case.start(CacherConfig.paper(update_ratio=1.0, refresh_interval=4))
    for frames, expected in zip(videos, dense, strict=True):
        torch.testing.assert_close(case.watch(frames), expected, rtol=1e-5, atol=1e-5)


def test_a_quarter_is_recomputed_of_three_frames_in_four(case, videos):
    dense = case.dense(videos[0])
    # After a first call, in which transformers leaves names of its own.
    before = {name: set(vars(module)) for name, module in case.model.named_modules()}
    cacher = case.start()
    found = case.watch(videos[0])
    stats = cacher.stats
    prefix = cacher.tower.prefix_tokens
    assert (stats.frames, stats.refreshes, stats.streams) == (32, 8, 1)
    assert stats.tokens_recomputed == 8 * (16 + prefix) + 24 * (4 + prefix)
    refreshes = slice(0, None, 4)
    assert close(found[refreshes], dense[refreshes])
    assert not close(found[1:4], dense[1:4])
    cacher.detach()
    assert torch.equal(case.dense(videos[0]), dense)
    assert {name: set(vars(module)) for name, module in case.model.named_modules()} == before


def test_each_video_starts_anew(case, videos):
    # 32 frames, so that a cycle of five is not over when the next video comes.
    case.start(CacherConfig.paper(update_ratio=0.25, refresh_interval=5))
    first, second = videos
    alone = case.watch(second)
    case.watch(first)
    assert not close(case.model.generate(None, images=case.images(second)), alone)
    case.watch(first)
    assert close(case.watch(second), alone)
