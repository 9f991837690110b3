"""LLaVA-NeXT-Video: logits and answers are the stock model's, where both see the same tokens."""

from __future__ import annotations

import json

import pytest
import torch
from session.conftest import QUESTION, steps_of_a_quarter
from session.test_processor import Whole
from transformers import MistralConfig

from stc_stream import (
    CacherConfig,
    PrunerConfig,
    RecentMemory,
    RetrievalMemory,
    SessionProcessor,
    StreamingSession,
    WindowMemory,
    compressed,
)
from stc_stream.session.pixels import CroppedPixelSettings, PixelSettings, read_pixels

EVERYTHING = {"cacher": CacherConfig.paper(update_ratio=1.0), "pruner": PrunerConfig.paper(16)}
GREEDY = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
CLIP = {
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2] * 3,
}


class Case:
    """A model with its processor, and the stock model's own way from frames to logits."""

    def __init__(self, seed, **settings):
        from stc_stream.session.untrained import build_llava_next_video

        self.model, self.processor = build_llava_next_video(seed=seed, **settings)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if weight.dim() == 2 and "embed" not in name:
                    weight.mul_(2)
                elif weight.dim() == 1:
                    weight.add_(0.1 * torch.randn(weight.shape, generator=generator))

    def inputs(self, frames, question=QUESTION):
        prompt = self.processor.prompt(question, video=True)
        placeholders = [self.model.config.video_token_id] * (16 * len(frames))
        ids = torch.tensor([[*prompt.before, *placeholders, *prompt.after]])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values_videos": self.processor.pixels(frames)[None],
        }

    @torch.no_grad()
    def logits(self, frames, question=QUESTION):
        return self.model(**self.inputs(frames, question)).logits[0, -1]

    @torch.no_grad()
    def embedded(self, frames, question=QUESTION):
        """Return the LLM's input in the stock path, [S, D]."""
        core, prompt = self.model.model, self.processor.prompt(question, video=True)
        states = core.vision_tower(self.processor.pixels(frames), output_hidden_states=True)
        patches = states.hidden_states[-2][:, 1:].unflatten(1, (8, 8)).movedim(-1, 1)
        pooled = core.vision_resampler.pool(patches).flatten(2).transpose(1, 2)
        video = core.multi_modal_projector(pooled).flatten(0, 1)
        table = core.get_input_embeddings()
        before, after = (table(torch.tensor(ids)) for ids in (prompt.before, prompt.after))
        return torch.cat([before, video, after])


@pytest.fixture
def case(seed):
    return Case(seed)


KINDS = {
    "Llama": {},
    "Mistral": {"llm": MistralConfig},
    "largest of four": {"spatial_pool_mode": "max"},
    "a learned pool": {"spatial_pool_mode": "conv"},
}


@pytest.mark.parametrize("positions", ["kept", "contiguous"])
@pytest.mark.parametrize("settings", [{}, EVERYTHING], ids=["dense", "everything kept"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_the_stock_models(kind, frames, positions, settings, seed):
    case = Case(seed, **KINDS[kind])
    first, expected = case.logits(frames[:1]), case.logits(frames[:5])
    assert not torch.allclose(expected, case.logits(frames[:5].flip(0)), atol=1e-3)
    with StreamingSession(case.model, case.processor, positions=positions, **settings) as session:
        session.feed(frames[:1])
        torch.testing.assert_close(session.logits(QUESTION), first, atol=1e-4, rtol=0)
        session.feed(frames[1:5])
        torch.testing.assert_close(session.logits(QUESTION), expected, atol=1e-4, rtol=0)


def test_an_llm_with_a_sliding_window(frames, seed):
    case = Case(seed, llm=lambda **settings: MistralConfig(**settings, sliding_window=20))
    with StreamingSession(case.model, case.processor, **EVERYTHING) as session:
        session.feed(frames[:3])
        session.feed(frames[3:4])
        found = session.logits(QUESTION)
    torch.testing.assert_close(found, case.logits(frames[:4]), atol=1e-4, rtol=0)
    for memory in (WindowMemory(), RetrievalMemory()):
        with pytest.raises(ValueError, match="all layers see all tokens.*sliding_window is 20"):
            StreamingSession(case.model, case.processor, memory=memory)


@pytest.mark.parametrize(
    "memory",
    [RecentMemory(frames=4), WindowMemory(window_tokens=200), RetrievalMemory(200, blocks=4)],
    ids=lambda memory: type(memory).__name__,
)
def test_memories_that_hold_all_frames(case, frames, memory):
    expected = case.logits(frames[:4])
    with StreamingSession(
        case.model, case.processor, memory=memory, positions="contiguous"
    ) as session:
        for frame in frames[:4].split(1):
            session.feed(frame)
        found = session.logits(QUESTION)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_an_answer_is_what_generate_gives(case, frames):
    inputs = case.inputs(frames[:3])
    tokens = case.model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]
    with StreamingSession(case.model, case.processor) as session:
        session.feed(frames[:3])
        found = session.ask(QUESTION, 8)
    assert found == case.processor.tokenizer.decode(tokens, skip_special_tokens=True)


def test_kept_positions_equal_the_whole_run_with_dropped_tokens_masked(case, frames):
    with StreamingSession(case.model, case.processor, pruner=PrunerConfig.paper(5)) as session:
        fed = session.feed(frames[:4])
        found = session.logits(QUESTION)
    whole = case.embedded(frames[:4])
    first = len(case.processor.prompt(QUESTION, video=True).before)
    seen = torch.ones(len(whole), dtype=torch.bool)
    seen[first : first + 64] = False
    for number, index in enumerate(fed.index):
        seen[first + 16 * number + index] = True
    assert int(seen.sum()) == len(whole) - 64 + 20
    mask = torch.ones(len(whole), len(whole), dtype=torch.bool).tril() & seen
    # A dropped token sees itself, so that its row is not empty; nobody sees it.
    mask |= torch.eye(len(whole), dtype=torch.bool)
    added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = case.model(inputs_embeds=whole[None], attention_mask=added[None, None]).logits
    torch.testing.assert_close(found, expected[0, -1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("cacher", [None, CacherConfig.paper(refresh_interval=3)])
def test_compressed_answers_as_a_session_does(case, generator, cacher):
    clip = steps_of_a_quarter(6, generator)
    settings = {"cacher": cacher, "pruner": PrunerConfig.paper(5)}
    with StreamingSession(
        case.model, case.processor, positions="contiguous", **settings
    ) as session:
        for frame in clip.split([2, 3, 1]):
            session.feed(frame)
        expected = session.logits(QUESTION)
    inputs = case.inputs(clip)
    ask = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    with compressed(case.model, **settings):
        output = case.model.generate(**inputs, **ask)
    prompt = inputs["input_ids"].shape[1]
    assert torch.equal(output.sequences[:, :prompt], inputs["input_ids"])
    torch.testing.assert_close(output.logits[0][0], expected, atol=1e-4, rtol=0)
    with compressed(case.model, pruner=PrunerConfig.paper(16)):
        kept = case.model.generate(**inputs, **GREEDY)
    assert torch.equal(kept, case.model.generate(**inputs, **GREEDY))


def test_the_cacher_and_the_pruner_save(case, generator):
    clip = steps_of_a_quarter(8, generator)
    config = CacherConfig.paper(update_ratio=0.25, refresh_interval=4)
    with StreamingSession(
        case.model, case.processor, cacher=config, pruner=PrunerConfig.paper(4)
    ) as session:
        fed = session.feed(clip)
        stats = session._stream._tower._shared._part.stats
        assert (fed.tokens, fed.kept, fed.index[0].shape) == (128, 32, (4,))
    assert (stats.frames, stats.refreshes) == (8, 2)


def stock_video_processor(**settings):
    pytest.importorskip("torchvision", reason="torchvision is not installed here")
    from transformers import LlavaNextVideoVideoProcessor

    return LlavaNextVideoVideoProcessor(**{**CLIP, **settings})


SHAPES = [(40, 56), (32, 32), (17, 90), (200, 31), (33, 47), (90, 91)]


@pytest.mark.parametrize("crop", [(32, 32), (24, 30), (40, 33), (47, 49)])
@pytest.mark.parametrize("size", SHAPES)
def test_pixels_are_the_stock_processors(generator, size, crop):
    stock = stock_video_processor(crop_size={"height": crop[0], "width": crop[1]})
    frames = torch.randint(0, 256, (3, *size, 3), generator=generator, dtype=torch.uint8)
    expected = stock(videos=[frames.permute(0, 3, 1, 2)], return_tensors="pt")
    ours = SessionProcessor.of(Whole(stock)).pixels(frames)
    assert torch.equal(ours, expected["pixel_values_videos"][0])


def test_a_stock_processor(case, frames):
    import transformers

    video = stock_video_processor(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    stock = transformers.LlavaNextVideoProcessor(
        image_processor=transformers.CLIPImageProcessor(),
        tokenizer=case.processor.tokenizer,
        video_processor=video,
        patch_size=4,
        vision_feature_select_strategy="default",
        chat_template=case.processor.template,
    )
    text = stock.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}],
        add_generation_prompt=True,
    )
    inputs = stock(text=text, videos=[frames.permute(0, 3, 1, 2)], return_tensors="pt")
    with torch.no_grad():
        expected = case.model(**inputs).logits[0, -1]
    with StreamingSession(case.model, stock) as session:
        session.feed(frames)
        torch.testing.assert_close(session.logits(QUESTION), expected, atol=1e-4, rtol=0)
    assert inputs["input_ids"].tolist() == case.inputs(frames)["input_ids"].tolist()


def test_files_of_a_checkpoint(case, tmp_path):
    case.processor.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"video_processor": CLIP}))
    (tmp_path / "chat_template.jinja").write_text(case.processor.template)
    read = SessionProcessor.from_pretrained(str(tmp_path))
    assert read.pixels == CroppedPixelSettings(
        32, 32, mean=(0.4, 0.5, 0.6), std=(0.2,) * 3, shorter=32
    )
    with StreamingSession(case.model, read) as session:
        session.feed(torch.zeros(1, 40, 40, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"crop_size": None}, "one height and width, but its size is"),
        ({"crop_size": {"height": 32}}, "one height and width, but its size is"),
        ({"do_center_crop": False}, "one height and width, but its size is"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "one height and width"),
        ({"size": {"height": 32, "width": 32}}, "must not crop frames"),
        ({"do_rescale": False}, "must have do_rescale"),
    ],
)
def test_settings_that_are_not_known(settings, words):
    with pytest.raises(ValueError, match=words):
        read_pixels({**CLIP, **settings})


def test_a_crop_of_one_number():
    read = read_pixels({**CLIP, "crop_size": 24})
    assert (read.height, read.width, read.shorter) == (24, 24, 32)


def test_a_processor_of_another_model(case):
    other = SessionProcessor(
        case.processor.tokenizer, case.processor.template, PixelSettings(24, 32)
    )
    with pytest.raises(ValueError, match="frames of 24 × 32 pixels, but the model takes 32 × 32"):
        StreamingSession(case.model, other)


def test_a_model_without_its_head(case):
    with pytest.raises(TypeError, match="LLaVA-NeXT-Video.*; but is a LlavaNext"):
        StreamingSession(case.model.model, case.processor)
