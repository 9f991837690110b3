"""Frames and words become what the stock processor makes of them, without torchvision."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from session.conftest import QUESTION, only_llava

from stc_stream import SessionProcessor, StreamingSession
from stc_stream.session.pixels import PixelSettings

STOCK = {"size": {"height": 32, "width": 32}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2] * 3}


def stock_video_processor(**settings):
    pytest.importorskip("torchvision", reason="torchvision is not installed here")
    from transformers import LlavaOnevisionVideoProcessor

    return LlavaOnevisionVideoProcessor(**{**STOCK, **settings})


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("size", [(40, 56), (32, 32), (17, 90), (200, 31)])
def test_pixels_are_the_stock_processors(generator, size, resample):
    stock = stock_video_processor(resample=resample)
    frames = torch.randint(0, 256, (3, *size, 3), generator=generator, dtype=torch.uint8)
    expected = stock(videos=[frames.permute(0, 3, 1, 2)], return_tensors="pt")
    ours = SessionProcessor.of(Whole(stock)).pixels(frames)
    assert torch.equal(ours, expected["pixel_values_videos"][0])


class Whole:
    """A stock processor's parts, where it can't be made."""

    def __init__(self, video_processor, tokenizer=None, chat_template="<video>"):
        self.video_processor = video_processor
        self.tokenizer = tokenizer or object()
        self.chat_template = chat_template


@only_llava
def test_a_stock_processor(case, frames):
    pytest.importorskip("torchvision", reason="torchvision is not installed here")
    import transformers

    # Without torchvision's part; the name without "Pil" was that one's until transformers 5.2.
    image_processor = getattr(
        transformers, "LlavaOnevisionImageProcessorPil", transformers.LlavaOnevisionImageProcessor
    )
    settings = {
        "size": {"height": 32, "width": 32},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    stock = transformers.LlavaOnevisionProcessor(
        image_processor=image_processor(**settings),
        tokenizer=case.processor.tokenizer,
        video_processor=stock_video_processor(**settings),
        num_image_tokens=64,
        vision_feature_select_strategy="full",
        chat_template=case.processor.template,
    )
    video = {"type": "video"}
    text = stock.apply_chat_template(
        [{"role": "user", "content": [video, {"type": "text", "text": QUESTION}]}],
        add_generation_prompt=True,
    )
    inputs = stock(text=text, videos=[frames.permute(0, 3, 1, 2)], return_tensors="pt")
    with torch.no_grad():
        expected = case.model(**inputs).logits[0, -1]
    with StreamingSession(case.model, stock) as session:
        session.feed(frames)
        torch.testing.assert_close(session.logits(QUESTION), expected, atol=1e-4, rtol=0)
    assert inputs["input_ids"].tolist() == case.inputs(frames)["input_ids"].tolist()


@only_llava
def test_frames_of_readers_that_own_their_buffers(case, frames):
    array = frames.numpy()
    array.flags.writeable = False
    expected = case.processor.pixels(frames)
    with StreamingSession(case.model, case.processor) as session:
        session.feed(array[:, ::-1])
        session.feed(np.ascontiguousarray(array))
    assert torch.equal(case.processor.pixels(frames), expected)


@only_llava
@pytest.mark.parametrize("layout", ["processor_config", "video_preprocessor_config", "old"])
def test_files_of_a_checkpoint(case, tmp_path, layout):
    case.processor.tokenizer.save_pretrained(tmp_path)
    settings = {**STOCK, "resample": 2, "rescale_factor": 0.005}
    if layout == "processor_config":
        files = {"processor_config.json": {"video_processor": settings, "image_processor": STOCK}}
    elif layout == "video_preprocessor_config":
        files = {"preprocessor_config.json": STOCK, "video_preprocessor_config.json": settings}
    else:
        files = {"preprocessor_config.json": settings}
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    if layout == "old":
        template = json.dumps({"chat_template": case.processor.template})
        (tmp_path / "chat_template.json").write_text(template)
    else:
        (tmp_path / "chat_template.jinja").write_text(case.processor.template)
    read = SessionProcessor.from_pretrained(str(tmp_path))
    assert read.pixels == PixelSettings(32, 32, 2, 0.005, (0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
    ours, theirs = (processor.prompt(QUESTION, video=True) for processor in (read, case.processor))
    assert (ours.before, ours.after) == (theirs.before, theirs.after)


@only_llava
def test_a_checkpoint_without_settings_for_frames(case, tmp_path):
    case.processor.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(OSError, match="has no settings for frames: none of video_preprocessor"):
        SessionProcessor.from_pretrained(str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(STOCK))
    with pytest.raises(ValueError, match="processor must have a chat template"):
        SessionProcessor.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": {"shortest_edge": 32}}, "one height and width, but its size is"),
        ({"size": None}, "one height and width, but its size is"),
        ({"resample": 1}, "resample by 2 or 3"),
        ({"do_normalize": False}, "must have do_normalize"),
        ({"do_center_crop": True}, "must not crop frames"),
    ],
)
def test_settings_that_are_not_known(settings, words):
    with pytest.raises(ValueError, match=words):
        PixelSettings.read({**STOCK, **settings})


def test_nothing_heavy_is_imported_with_the_package():
    code = (
        "import sys, stc_stream; dir(stc_stream); "
        "assert {'StreamingSession', 'FullMemory', 'compressed'} <= set(stc_stream.__all__); "
        "assert not {'torch', 'transformers', 'stc_stream.session'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_session_needs_no_torchvision():
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "import torch\n"
        "from stc_stream import StreamingSession\n"
        "from stc_stream.session.untrained import build_llava_onevision\n"
        "with StreamingSession(*build_llava_onevision()) as session:\n"
        "    session.feed(torch.zeros(1, 40, 40, 3, dtype=torch.uint8))\n"
        "    print(len(session.logits('What?')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "300\n"
