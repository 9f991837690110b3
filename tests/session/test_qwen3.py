"""What Qwen3-VL alone has: times as text, pixels that frames share, features of layers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from session.conftest import QUESTION, make_case, patched
from session.test_qwen import Whole
from transformers import ProcessorMixin

from stc_stream import PrunerConfig, SessionProcessor, StreamingSession, compressed
from stc_stream.session.pixels import DynamicPixelSettings, SharedPixelSettings, read_pixels


@pytest.fixture
def family() -> str:
    return "Qwen3-VL"


def stock_video_processor(**settings):
    pytest.importorskip("torchvision", reason="torchvision is not installed here")
    from transformers import Qwen3VLVideoProcessor

    limits = {"shortest_edge": 512, "longest_edge": 2048}
    own = {"patch_size": 4, "size": limits, "do_sample_frames": False}
    return Qwen3VLVideoProcessor(**{**own, **settings})


SIZES = [(40, 56), (32, 32), (9, 90), (200, 31), (64, 16), (37, 61), (300, 500), (11, 12), (5, 9)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("limits", [(512, 2048), (30000, 120000), (256, 9000)])
@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("count", [2, 12])
def test_pixels_are_the_stock_processors(generator, size, limits, capped, count):
    settings = {"size": {"shortest_edge": limits[0], "longest_edge": limits[1]}}
    settings |= {"cap_pixels_per_frame": True, "max_video_tokens": 9} if capped else {}
    stock = stock_video_processor(**settings)
    if capped and not hasattr(type(stock), "cap_pixels_per_frame"):
        pytest.skip("this version of transformers does not know the setting")
    frames = torch.randint(0, 256, (count, *size, 3), generator=generator, dtype=torch.uint8)
    try:
        expected = stock(videos=[frames.permute(0, 3, 1, 2)], return_tensors="pt")
    except ValueError:
        pytest.skip("this version of transformers refuses frames smaller than a token")
    pixels = SessionProcessor.of(Whole(stock)).pixels
    found = replace(pixels, frames=count)(frames)
    ours, grid = patched(found)
    assert torch.equal(grid, expected["video_grid_thw"])
    assert torch.equal(ours, expected["pixel_values_videos"])


@pytest.mark.parametrize("count", [3, 6])
def test_a_stock_processor(case, frames, count):
    """Given the size that the session has, which is that of a shorter video."""
    import transformers

    videos = stock_video_processor(do_resize=False)
    pictures = getattr(transformers, "Qwen2VLImageProcessorPil", transformers.Qwen2VLImageProcessor)
    stock = transformers.Qwen3VLProcessor(
        image_processor=pictures(patch_size=4),
        tokenizer=case.processor.tokenizer,
        video_processor=videos,
        chat_template=case.processor.template,
    )
    text = stock.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}],
        add_generation_prompt=True,
    )
    size = case.processor.pixels.size_of(40, 56)
    clip = frames[:count].permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(clip, size, mode="bicubic", antialias=True)
    inputs = stock(text=text, videos=[resized], return_tensors="pt")
    assert torch.equal(inputs["input_ids"], case.inputs(frames[:count])["input_ids"])
    with torch.no_grad():
        expected = case.model(**inputs).logits[0, -1]
    videos.do_resize = True
    with StreamingSession(case.model, stock) as session:
        session.feed(frames[:1])
        session.feed(frames[1:count])
        torch.testing.assert_close(session.logits(QUESTION), expected, atol=1e-4, rtol=0)
    greedy = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    generated = case.model.generate(**inputs, **greedy)
    with compressed(case.model, pruner=PrunerConfig.paper(keep_ratio=1.0)):
        assert torch.equal(case.model.generate(**inputs, **greedy), generated)


def test_times_are_written_before_temporal_patches(case, frames):
    """The middle of a temporal patch; frames without a time follow at 24 a second."""
    with StreamingSession(case.model, case.processor) as session:
        session.feed(frames[:3], [7.0, 7.5, 9.26])
        session.feed(frames[3:4], [10.0])
        session.feed(frames[4:5])
        found = session.logits(QUESTION)
    ids = case.inputs(frames[:5])["input_ids"][0]
    text = case.processor.tokenizer.decode(ids)
    for old, new in (("<0.0 s", "<7.2 s"), ("<0.1 s", "<9.6 s"), ("<0.2 s", "<10.0 s")):
        assert text.count(old) == 1
        text = text.replace(old, new)
    ids = torch.tensor([case.processor.tokenizer(text)["input_ids"]])
    expected = case.run(case.with_ids(case.videos(frames[:5]), ids))[-1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_features_of_layers_go_where_their_tokens_go(case, frames):
    """The LLM gets those of the kept tokens: others in their place give other logits."""
    with StreamingSession(case.model, case.processor, pruner=PrunerConfig.paper(5)) as session:
        fed = session.feed(frames[:4])
        found = session.logits(QUESTION)
    places = case.places(frames[:4])
    left = torch.ones(case.inputs(frames[:4])["input_ids"].shape[1], dtype=torch.bool)
    left[places] = False
    for own, index in zip(places, fed.index, strict=True):
        left[own[index]] = True
    rows = left.nonzero()[:, 0]
    expected = case.run_embedded(frames[:4], rows=rows)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        plain = case.model(
            inputs_embeds=case.embedded(frames[:4])[rows][None],
            position_ids=case.positions(frames[:4])[..., rows],
        ).logits[0, -1]
    assert (plain - found).abs().max() > 1e-3


def test_what_stands_around_a_video_is_the_installed_processors(case):
    prompt = case.processor.prompt(QUESTION, video=True)
    start = case.processor.tokenizer.convert_tokens_to_ids("<|vision_start|>")
    ids = case.inputs(torch.zeros(2, 40, 56, 3, dtype=torch.uint8))["input_ids"][0]
    kept = hasattr(ProcessorMixin, "replace_video_token")
    assert int((ids == start).sum()) == 1 + kept
    assert prompt.before[-1] == start


def test_files_of_a_checkpoint(case, tmp_path):
    case.processor.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(case.processor.template)
    settings = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    settings |= {"size": {"shortest_edge": 512, "longest_edge": 2048}}
    name = {"video_processor_type": "Qwen3VLVideoProcessor"}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps({**settings, **name}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    read = SessionProcessor.from_pretrained(str(tmp_path))
    assert read.pixels == case.processor.pixels
    capped = read_pixels({**settings, **name, "cap_pixels_per_frame": True, "max_video_tokens": 7})
    assert (capped.frames, capped.frame_tokens) == (2, 7)
    StreamingSession(case.model, read).close()


def test_processors_of_other_models(case):
    pixels = DynamicPixelSettings(256, 1024, 4)
    words = "limits the pixels of a frame, but the model's those of a whole video"
    with pytest.raises(ValueError, match=f"processor must be the model's: it {words}"):
        StreamingSession(case.model, replace(case.processor, pixels=pixels))
    older = make_case(1, "Qwen2-VL")
    shared = SharedPixelSettings(256, 1024, 4)
    words = "limits the pixels of a whole video, but the model's those of a frame"
    with pytest.raises(ValueError, match=words):
        StreamingSession(older.model, replace(older.processor, pixels=shared))


@pytest.mark.parametrize("count", [0, 3, -2])
def test_frames_that_make_no_temporal_patches(count):
    with pytest.raises(ValueError, match=f"frames must be a multiple of 2, .* but is {count}"):
        SharedPixelSettings(256, 1024, frames=count)
