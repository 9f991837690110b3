"""LiveCC, on its architecture built small: examples/livecc.py, held to the stock model."""

from __future__ import annotations

import inspect

import pytest
import torch
from session.conftest import patched
from torch import Tensor

from examples.livecc import Commentary, parts
from stc_stream import CacherConfig, attach_cacher


@pytest.fixture
def livecc(seed):
    """Return a small Qwen2-VL whose logits depend on every frame, and its processor."""
    from stc_stream.session.untrained import build_qwen2_vl

    model, processor = build_qwen2_vl(seed=seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.mul_(2)
    return model, processor


def next_logits(model, ids: list[int], frames: list[Tensor], processor) -> Tensor:
    """Return the stock model's logits behind a whole conversation, of a video for each turn."""
    tokens = torch.tensor([ids])
    videos = [patched(processor.pixels(images)) for images in frames]
    inputs = {
        "input_ids": tokens,
        "pixel_values_videos": torch.cat([patches for patches, _ in videos]),
        "video_grid_thw": torch.cat([grid for _, grid in videos]),
    }
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        inputs["mm_token_type_ids"] = 2 * (tokens == model.config.video_token_id).int()
    with torch.no_grad():
        return model(**inputs).logits[0, -1]


def test_livecc_says_what_the_stock_model_says(livecc, generator):
    """Frames and words by turns, on one cache, are the whole conversation in one call."""
    model, processor = livecc
    video = torch.randint(0, 256, (12, 40, 56, 3), generator=generator, dtype=torch.uint8)
    turns = video.split([6, 2, 2, 2])
    vision = [model.config.vision_start_token_id, model.config.vision_end_token_id]
    ids, times = [], ["0.0-3.0", "3.0-4.0", "4.0-5.0", "5.0-6.0"]
    stop = processor.tokenizer.eos_token_id

    def words(text):
        return processor.tokenizer(text)["input_ids"]

    found, said = [], []
    with attach_cacher(model, CacherConfig.paper(update_ratio=1.0)), torch.no_grad():
        commentary = Commentary(model, processor, "Who?")
        for images in turns:
            logits = commentary.see(images)
            found.append(logits)
            said.append(commentary.say(logits))
    for number, (images, time) in enumerate(zip(turns, times, strict=True)):
        pixels = processor.pixels(images)
        count = len(images) // 2 * pixels.shape[2] * pixels.shape[3] // 8**2
        ids += words(f"<|im_start|>user\nTime={time}s")
        ids += [vision[0], *[model.config.video_token_id] * count, vision[1]]
        ids += words("Who?" if number == 0 else "")
        ids += words("<|im_end|>\n<|im_start|>assistant\n")
        logits = next_logits(model, ids, list(turns[: number + 1]), processor)
        torch.testing.assert_close(found[number], logits, atol=1e-4, rtol=0)
        answer: list[int] = []
        while len(answer) < 16 and int(logits.argmax()) != stop:
            answer.append(int(logits.argmax()))
            logits = next_logits(model, ids + answer, list(turns[: number + 1]), processor)
        assert said[number] == processor.tokenizer.decode(answer, skip_special_tokens=True)
        # The last token is said, but not in the context.
        ids += (answer[:-1] if len(answer) == 16 else answer) + words("<|im_end|>\n")


def test_livecc_reuses_what_did_not_change(livecc, generator):
    model, processor = livecc
    frames = torch.randint(0, 256, (1, 32, 32, 3), generator=generator, dtype=torch.uint8)
    frames = frames.repeat(24, 1, 1, 1)
    config = CacherConfig.paper(update_ratio=0.25, refresh_interval=4)
    with attach_cacher(model, config) as cacher, torch.no_grad():
        commentary = Commentary(model, processor, "Who?")
        for images in parts(iter(frames.numpy())):
            commentary.watch(torch.from_numpy(images))
        assert commentary.seconds == 12
        stats = cacher.stats
    # 12 temporal patches of 64 patches.
    assert (stats.frames, stats.refreshes) == (12, 3)
    assert stats.tokens_recomputed == 3 * 64 + 9 * 16


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [2]), (5, [6]), (6, [6]), (7, [6, 2]), (10, [6, 2, 2])]
)
def test_an_odd_frame_at_the_end_is_seen_twice(count, sizes):
    frames = torch.arange(count).view(-1, 1, 1, 1).expand(count, 2, 2, 3).numpy()
    found = list(parts(iter(frames)))
    assert [len(images) for images in found] == sizes
    seen = [int(image[0, 0, 0]) for images in found for image in images]
    assert seen == [*range(count), *([count - 1] if count % 2 else [])]
