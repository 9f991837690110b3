"""What Qwen's models alone have: temporal patches of two frames, frames of any size, time."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch
from session.conftest import FAMILIES, QUESTION, make_case, steps_of_a_quarter

from stc_stream import (
    CacherConfig,
    MemoryFullError,
    PrunerConfig,
    RecentMemory,
    RetrievalMemory,
    SessionProcessor,
    StreamingSession,
    WindowMemory,
    compressed,
)
from stc_stream.session.models import read_model
from stc_stream.session.numbering import Place, TemporalPatch
from stc_stream.session.pixels import DynamicPixelSettings, PixelSettings

older = pytest.mark.parametrize("family", FAMILIES[1:3])
"""Not Qwen3-VL."""
COMPRESSED = {
    "cacher": CacherConfig.paper(update_ratio=0.25, refresh_interval=3),
    "pruner": PrunerConfig.paper(6),
}


@pytest.fixture(params=FAMILIES[1:])
def family(request) -> str:
    return request.param


class Calls:
    """Counts how often a tower runs."""

    def __init__(self, case) -> None:
        self.count = 0
        case.model.model.visual.register_forward_pre_hook(self)

    def __call__(self, *_) -> None:
        self.count += 1


def test_an_odd_frame_waits(case, frames):
    tokens = case.tokens(frames)
    with StreamingSession(case.model, case.processor, pruner=PrunerConfig.paper(5)) as session:
        fed = session.feed(frames[:1])
        assert (fed.frames, fed.tokens, fed.kept, fed.index) == (1, 0, 0, ())
        assert list(fed.seconds) == ["preprocess", "tower", "prune", "prefill"]
        stats = session.stats
        assert (stats.frames, stats.frames_waiting) == (1, 1)
        assert stats.tokens_seen == stats.tokens_held == 0
        fed = session.feed(frames[1:4])
        assert (fed.frames, fed.tokens, fed.kept, len(fed.index)) == (3, 2 * tokens, 10, 2)
        assert (session.stats.frames, session.stats.frames_waiting) == (4, 0)
        assert session.stats.tokens_seen == 2 * tokens
        session.feed(frames[4:5])
        session.reset()
        assert session.stats.frames_waiting == 0


@pytest.mark.parametrize("positions", ["kept", "contiguous"])
def test_questions_about_an_odd_frame_leave_nothing(case, generator, positions):
    clip = steps_of_a_quarter(7, generator)
    settings = {**COMPRESSED, "positions": positions}
    with (
        StreamingSession(case.model, case.processor, **settings) as asked,
        StreamingSession(case.model, case.processor, **settings) as never,
    ):
        for number, frame in enumerate(clip):
            asked.feed(frame[None])
            never.feed(frame[None])
            first = asked.logits(QUESTION)
            asked.score("Which?", ["one", "two"])
            asked.ask("And?", 2)
            assert torch.equal(asked.logits(QUESTION), first)
            if number % 2:
                torch.testing.assert_close(first, never.logits(QUESTION), atol=1e-6, rtol=0)
        assert asked.stats == never.stats
        torch.testing.assert_close(
            asked.logits(QUESTION), never.logits(QUESTION), atol=1e-6, rtol=0
        )


def test_an_odd_frame_is_run_once_for_all_questions(case, frames):
    calls = Calls(case)
    with StreamingSession(case.model, case.processor, cacher=CacherConfig.paper()) as session:
        session.feed(frames[:3])
        assert calls.count == 1
        session.logits(QUESTION)
        session.logits("Why?")
        assert calls.count == 2
        session.feed(frames[3:4])
        session.logits(QUESTION)
        assert calls.count == 3


def test_a_fork_has_the_frame_that_waits(case, frames):
    with StreamingSession(case.model, case.processor) as session:
        session.feed(frames[:3])
        with session.fork() as other:
            other.feed(frames[5:6])
            session.feed(frames[3:4])
            for one, shown in ((other, [0, 1, 2, 5]), (session, [0, 1, 2, 3])):
                expected = case.logits(frames[shown])
                torch.testing.assert_close(one.logits(QUESTION), expected, atol=1e-4, rtol=0)


def test_an_error_leaves_the_frame_that_waits(case, frames):
    with StreamingSession(case.model, case.processor) as session:
        session.feed(frames[:3])
        before, stats = session.logits(QUESTION), session.stats
        weight = next(case.model.model.visual.merger.parameters())
        with torch.no_grad():
            weight[0] += torch.inf
            with pytest.raises(ValueError, match="finite tokens, but frame 2 of the stream"):
                session.feed(frames[3:6])
            weight[0] = 1.0
        assert session.stats == stats
        assert torch.equal(session.logits(QUESTION), before)
        with pytest.raises(ValueError, match="must not go back"):
            session.feed(frames[3:6], timestamps=[2.0, 1.0, 3.0])
        hook = case.model.model.language_model.layers[1].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            session.feed(frames[3:6])
        hook.remove()
        assert session.stats == stats
        assert torch.equal(session.logits(QUESTION), before)


def interrupt(*_):
    raise KeyboardInterrupt


@older
@pytest.mark.parametrize("pace", [1.0, 2.0, 0.4, 3.0, 30.0])
def test_times_are_those_of_the_stock_path(case, frames, pace):
    """In Qwen2.5-VL; Qwen2-VL does not look at them."""
    clip = frames[[0, 1, 2, 3, 4, 5, 6, 7, 0, 1]]
    inputs = case.inputs(clip)
    if "second_per_grid_ts" in inputs:
        inputs["second_per_grid_ts"] = torch.tensor([2 / pace])
    times = [100 + number / pace for number in range(10)]
    with StreamingSession(case.model, case.processor) as session:
        session.feed(clip[:3], times[:3])
        session.feed(clip[3:], times[3:])
        found = session.logits(QUESTION)
    torch.testing.assert_close(found, case.run(inputs)[-1], atol=1e-4, rtol=0)


@older
def test_positions_at_an_uneven_pace(case, generator):
    """Against the definition: time, row and column from where the video starts."""
    model = read_model(case.model)
    gaps = 3 * torch.rand(12, generator=generator, dtype=torch.float64)
    times = gaps.cumsum(0).tolist()
    kept, place = model.numbering("kept"), Place(7, 7)
    for number, time in enumerate(times):
        patch = TemporalPatch(3, 5, (time, time + 0.1))
        index = torch.randperm(15, generator=generator)[:6].sort().values
        found = kept.positions(place, patch, index)
        step = number
        if model.family == "Qwen2.5-VL" and not model._clock.whole_seconds:
            step = math.floor(2 * (time - times[0]))
        elif model.family == "Qwen2.5-VL":
            step = sum(2 * math.floor(now - last) for last, now in pairwise(times[: number + 1]))
        expected = [[7 + step, 7 + place // 5, 7 + place % 5] for place in index.tolist()]
        assert found.T.tolist() == expected
        place = kept.after(place, patch, 6)
        assert place.reach == 7 + max(5, step + 1)
        assert place.text == (place.reach if model._clock.text_behind_time else 12)


@older
def test_time_ends_with_the_models_context(seed, family):
    case = make_case(seed, family, context=40)
    frames = torch.zeros(8, 16, 16, 3, dtype=torch.uint8)
    times = [10.0 * number for number in range(8)]
    pruner = PrunerConfig.paper(1)
    before = len(case.processor.prompt("?", video=True).before)
    with StreamingSession(case.model, case.processor, pruner=pruner) as session:
        step = 40 if family == "Qwen2.5-VL" else 1
        if step == 1:
            for _ in range(40 - before):
                session.feed(frames[:2])
            stats = session.stats
            with pytest.raises(MemoryFullError, match="context has 40 positions, of which 40 are"):
                session.feed(frames[:2])
        else:
            session.feed(frames[:2], times[:2])
            stats = session.stats
            with pytest.raises(MemoryFullError, match="context has 40 positions, of which"):
                session.feed(frames[2:4], times[4:6])
        assert session.stats == stats


@older
@pytest.mark.parametrize(
    ("memory", "fed", "first"), [(4, 1, 0), (4, 4, 0), (4, 7, 4), (5, 8, 4), (1, 4, 2), (1, 5, 4)]
)
def test_recent_frames_are_the_last_temporal_patches(case, frames, memory, fed, first):
    """The one that waits for its second frame among them; positions start anew."""
    with StreamingSession(case.model, case.processor, memory=RecentMemory(memory)) as session:
        session.feed(frames[:1])
        session.logits(QUESTION)
        for number in range(1, fed):
            session.feed(frames[number : number + 1])
        found, stats = session.logits(QUESTION), session.stats
        assert torch.equal(session.logits(QUESTION), found)
    expected = case.logits(frames[first:fed])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    held = 2 * max(memory // 2, 1)
    assert stats.frames_forgotten == max(fed // 2 * 2 - held, 0)


def test_a_window_that_is_not_full_is_the_full_memory(case, frames):
    with StreamingSession(case.model, case.processor, memory=WindowMemory(4, 100)) as session:
        session.feed(frames[:5])
        expected = case.logits(frames[:5])
        torch.testing.assert_close(session.logits(QUESTION), expected, atol=1e-4, rtol=0)


@older
@pytest.mark.parametrize(("sink", "window"), [(0, 13), (3, 20), (30, 12)])
def test_a_window_equals_one_run_with_a_mask(case, frames, sink, window):
    """A patch sees sinks, and of those before it what fits into the window with it."""
    memory = WindowMemory(sink, window)
    with StreamingSession(case.model, case.processor, memory=memory) as session:
        session.feed(frames[:3])
        session.feed(frames[3:])
        found, forgotten = session.logits(QUESTION), session.stats.frames_forgotten
    whole, tokens = case.embedded(frames), case.tokens(frames)
    number, end = torch.arange(len(whole)), len(case.processor.prompt(QUESTION, video=True).before)
    ends = [end + tokens * (patch + 1) for patch in range(case.patches(frames))]
    seen = torch.ones(len(whole), len(whole), dtype=torch.bool).tril()
    for last in ends:
        rows = slice(last - tokens, last if last < ends[-1] else None)
        seen[rows, (number >= sink) & (number < last - window)] = False
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = case.model(
            inputs_embeds=whole[None],
            attention_mask=added[None, None],
            position_ids=case.positions(frames),
        ).logits
    torch.testing.assert_close(found, expected[0, -1], atol=1e-4, rtol=0)
    assert forgotten > 0


def test_memories_that_turn_keys(case):
    for settings in (
        {"memory": WindowMemory(4, 40), "positions": "contiguous"},
        {"memory": RetrievalMemory(40, 4)},
    ):
        with pytest.raises(TypeError, match="rotary positions of one axis, but the model's have"):
            StreamingSession(case.model, case.processor, **settings)


def test_sessions_leave_nothing_on_the_model(case, frames):
    with StreamingSession(case.model, case.processor) as session:
        session.feed(frames[:3])
        session.ask(QUESTION, 3)
    assert case.model.model.rope_deltas is None


def stock_video_processor(**settings):
    pytest.importorskip("torchvision", reason="torchvision is not installed here")
    from transformers import Qwen2VLVideoProcessor

    limits = {"shortest_edge": 256, "longest_edge": 1024}
    return Qwen2VLVideoProcessor(**{"patch_size": 4, "size": limits, **settings})


SIZES = [(40, 56), (32, 32), (9, 90), (200, 31), (5, 5), (64, 16), (37, 61), (300, 500), (11, 12)]


@older
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("limits", [(256, 1024), (4096, 16384)])
def test_pixels_are_the_stock_processors(case, generator, size, limits):
    stock = stock_video_processor(size={"shortest_edge": limits[0], "longest_edge": limits[1]})
    frames = torch.randint(0, 256, (3, *size, 3), generator=generator, dtype=torch.uint8)
    expected = stock(videos=[frames.permute(0, 3, 1, 2)], return_tensors="pt")
    pixels = SessionProcessor.of(Whole(stock)).pixels(frames)
    model = read_model(case.model)
    found, grid = model._patched(torch.cat([pixels, pixels[-1:]]))
    assert torch.equal(found, expected["pixel_values_videos"])
    assert torch.equal(grid, expected["video_grid_thw"])
    assert torch.equal(model._unpatched(found, *grid[0].tolist())[:3], pixels)


class Whole:
    """A stock processor's parts, where it can't be made."""

    def __init__(self, video_processor) -> None:
        self.video_processor = video_processor
        self.tokenizer = object()
        self.chat_template = "<|video_pad|>"


def stock_processor(case):
    """Return the stock processor, with the case's tokenizer and template."""
    videos = stock_video_processor()
    import transformers

    pictures = getattr(transformers, "Qwen2VLImageProcessorPil", transformers.Qwen2VLImageProcessor)
    kind = "Qwen2VLProcessor"
    if case.model.config.model_type == "qwen2_5_vl":
        kind = "Qwen2_5_VLProcessor"
    return getattr(transformers, kind)(
        image_processor=pictures(patch_size=4),
        tokenizer=case.processor.tokenizer,
        video_processor=videos,
        chat_template=case.processor.template,
    )


@older
@pytest.mark.parametrize("count", [3, 6])
def test_a_stock_processor(case, frames, count):
    stock = stock_processor(case)
    text = stock.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}],
        add_generation_prompt=True,
    )
    video = frames[:count].permute(0, 3, 1, 2)
    inputs = stock(text=text, videos=[video], return_tensors="pt")
    ours = case.inputs(frames[:count])
    for name in ("input_ids", "pixel_values_videos", "video_grid_thw"):
        assert torch.equal(inputs[name], ours[name])
    with torch.no_grad():
        expected = case.model(**inputs).logits[0, -1]
    with StreamingSession(case.model, stock) as session:
        session.feed(frames[:count])
        torch.testing.assert_close(session.logits(QUESTION), expected, atol=1e-4, rtol=0)
    greedy = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    generated = case.model.generate(**inputs, **greedy)
    with compressed(case.model, pruner=PrunerConfig.paper(keep_ratio=1.0)):
        assert torch.equal(case.model.generate(**inputs, **greedy), generated)


@older
@pytest.mark.parametrize("layout", ["processor_config", "video_preprocessor_config", "old"])
def test_files_of_a_checkpoint(case, tmp_path, layout):
    case.processor.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(case.processor.template)
    common = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "resample": 2}
    common |= {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2] * 3, "rescale_factor": 0.005}
    sized = {**common, "size": {"shortest_edge": 512, "longest_edge": 2048}}
    limited = {**common, "min_pixels": 512, "max_pixels": 2048}
    files = {
        "processor_config": {"processor_config.json": {"video_processor": sized}},
        "video_preprocessor_config": {
            "preprocessor_config.json": {**limited, "max_pixels": 4096},
            "video_preprocessor_config.json": sized,
        },
        "old": {"preprocessor_config.json": limited},
    }[layout]
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    read = SessionProcessor.from_pretrained(str(tmp_path))
    colours = (2, 0.005, (0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
    assert read.pixels == DynamicPixelSettings(512, 2048, 4, 2, 2, *colours)
    assert read.video_token == "<|video_pad|>"
    StreamingSession(case.model, read).close()


def test_a_size_without_limits(case):
    settings = {"merge_size": 2, "patch_size": 4, "temporal_patch_size": 2, "size": {"height": 4}}
    with pytest.raises(ValueError, match=r"must say the fewest and the most pixels.*'height': 4"):
        DynamicPixelSettings.read(settings)


def test_frames_too_long_for_a_grid(case, frames):
    with StreamingSession(case.model, case.processor) as session:
        with pytest.raises(ValueError, match="at most 200 times as long.* are 1 × 201 pixels"):
            session.feed(frames[:1, :1].repeat(1, 1, 4, 1)[:, :, :201])
        assert session.stats.frames == 0
        session.feed(frames[:2])
        # Later frames have the first one's size.
        session.feed(frames[:2, :1].repeat(1, 1, 4, 1)[:, :, :201])


@older
def test_processors_of_other_models(case):
    processor = case.processor
    for pixels, words in (
        (PixelSettings(32, 32), "brings frames to one size, but the model takes frames of any"),
        (
            DynamicPixelSettings(256, 1024, 14),
            "patches are of 14 pixels, 2 × 2 a token and 2 frames deep, but the model's of 4, 2",
        ),
        (DynamicPixelSettings(256, 1024, 4, 2, 1), "and 1 frames deep, but .* and 2"),
    ):
        other = SessionProcessor(processor.tokenizer, processor.template, pixels, "<|video_pad|>")
        with pytest.raises(ValueError, match=f"processor must be the model's: .*{words}"):
            StreamingSession(case.model, other)
    llava = make_case(1)
    wrong = SessionProcessor(
        llava.processor.tokenizer, llava.processor.template, processor.pixels, "<video>"
    )
    with pytest.raises(ValueError, match="frames of any size, but the model takes 32 × 32"):
        StreamingSession(llava.model, wrong)


def test_a_budget_above_a_frames_tokens(case, frames):
    tokens = case.tokens(frames)
    many = PrunerConfig.paper(tokens + 1)
    with StreamingSession(case.model, case.processor, pruner=many) as session:
        with pytest.raises(ValueError, match=rf"must be in 1\.\.{tokens}, .* but is {tokens + 1}"):
            session.feed(frames[:1])
        assert session.stats.frames == 0


def test_videos_without_their_grids(case, frames):
    inputs = case.inputs(frames[:4])
    with compressed(case.model):
        for grid in (None, inputs["video_grid_thw"] * 2):
            with pytest.raises(ValueError, match="video_grid_thw must name the patches"):
                case.model.generate(**{**inputs, "video_grid_thw": grid})


def test_videos_of_several_sizes_in_one_call(case, frames):
    """Each with its own grid, and a pruner that drops most of them."""
    rows = [case.inputs(frames[:4]), case.inputs(frames[4:7, :32, :32], "Why?")]
    greedy = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    with compressed(case.model, pruner=PrunerConfig.paper(4)):
        together = case.model.generate(**case.together(rows), **greedy)
        alone = [case.model.generate(**row, **greedy) for row in rows]
    longest = max(row["input_ids"].shape[1] for row in rows)
    for number, row in enumerate(rows):
        new = alone[number][0, row["input_ids"].shape[1] :]
        assert torch.equal(together[number, longest:][: len(new)], new)
