"""`compressed`: the stock model's own video path, with fewer tokens of each frame."""

from __future__ import annotations

import threading

import pytest
import torch
import transformers
from session.conftest import QUESTION, only_llava, steps_of_a_quarter
from session.test_tower import is_plain
from transformers import DynamicCache, GenerationConfig

from stc_stream import CacherConfig, PrunerConfig, StreamingSession, compressed

GREEDY = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}


def test_keeping_everything_gives_what_the_stock_model_gives(case, frames):
    inputs = case.inputs(frames[:4])
    expected = case.model.generate(**inputs, **GREEDY)
    with compressed(case.model, pruner=PrunerConfig.paper(keep_ratio=1.0)) as model:
        assert model is case.model
        assert torch.equal(model.generate(**inputs, **GREEDY), expected)
    with compressed(case.model):
        assert torch.equal(case.model.generate(**inputs, **GREEDY), expected)


@pytest.mark.parametrize("cacher", [None, CacherConfig.paper(refresh_interval=3)])
def test_it_answers_as_a_session_does(case, generator, cacher):
    clip = steps_of_a_quarter(6, generator)
    settings = {"cacher": cacher, "pruner": PrunerConfig.paper(5)}
    inputs = case.inputs(clip)
    prompt = inputs["input_ids"].shape[1]
    chosen, steps = [], []

    def choose(logits):
        steps.append(logits)
        chosen.append(int(logits.argmax()))
        return chosen[-1]

    with StreamingSession(
        case.model, case.processor, positions="contiguous", **settings
    ) as session:
        session.feed(clip)
        session.ask(QUESTION, 8, choose=choose)
    for _ in range(2):
        # Each call's video is a stream of its own: the second is as the first.
        with compressed(case.model, **settings):
            output = case.model.generate(
                **inputs, **GREEDY, return_dict_in_generate=True, output_logits=True
            )
        assert torch.equal(output.sequences[:, :prompt], inputs["input_ids"])
        assert output.sequences[0, prompt:].tolist() == chosen
        found = torch.cat(output.logits)[: len(steps)]
        torch.testing.assert_close(found, torch.stack(steps)[: len(found)], atol=1e-4, rtol=0)
    assert is_plain(case.model)


def test_each_call_starts_anew(case, generator):
    clip = steps_of_a_quarter(5, generator)
    inputs = case.inputs(clip)
    settings = {"cacher": CacherConfig.paper(0.05, 5), "pruner": PrunerConfig.paper(3)}
    ask = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    with compressed(case.model, **settings):
        first = case.model.generate(**inputs, **ask).logits[0]
        second = case.model.generate(**inputs, **ask).logits[0]
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)


def test_a_batch_of_videos_with_prompts_of_several_lengths(case, generator):
    clips = [steps_of_a_quarter(3, generator) for _ in range(2)]
    rows = [
        case.inputs(clip, question)
        for clip, question in zip(clips, ("Why?", QUESTION), strict=True)
    ]
    batch = case.together(rows)
    ids, longest = batch["input_ids"], batch["input_ids"].shape[1]
    settings = {"cacher": CacherConfig.paper(), "pruner": PrunerConfig.paper(4)}
    more = {**GREEDY, "num_return_sequences": 2, "num_beams": 2}
    with compressed(case.model, **settings):
        together = case.model.generate(**batch, **more)
        alone = [case.model.generate(**row, **more) for row in rows]
    assert torch.equal(together[:, :longest], ids.repeat_interleave(2, 0))
    for number, row in enumerate(rows):
        new = alone[number][:, row["input_ids"].shape[1] :]
        ours = together[2 * number : 2 * number + 2, longest:]
        width = min(new.shape[1], ours.shape[1])
        assert torch.equal(ours[:, :width], new[:, :width])


@only_llava
def test_frames_that_keep_different_numbers(case, frames):
    """A pruner of one's own, which keeps fewer tokens of each frame than of the one before."""

    class Fewer:
        def __init__(self):
            self.frames = 0

        def __call__(self, tokens):
            kept, index = [], []
            for frame in tokens:
                self.frames += 1
                index.append(torch.arange(0, 16, self.frames))
                kept.append(frame[index[-1]])
            return type("Pruned", (), {"tokens": kept, "index": index})

        def reset(self):
            self.frames = 0

    with StreamingSession(
        case.model, case.processor, pruner=Fewer(), positions="contiguous"
    ) as session:
        fed = session.feed(frames[:3])
        assert [len(index) for index in fed.index] == [16, 8, 6]
        expected = session.logits(QUESTION)
    ask = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    with compressed(case.model, pruner=Fewer()):
        found = case.model.generate(**case.inputs(frames[:3]), **ask).logits[0][0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_limits_count_the_callers_prompt(case, frames):
    inputs = case.inputs(frames[:2])
    length = inputs["input_ids"].shape[1] + 3
    with compressed(case.model, pruner=PrunerConfig.paper(4)):
        output = case.model.generate(**inputs, do_sample=False, max_length=length, pad_token_id=0)
    assert output.shape[1] <= length
    assert torch.equal(output[:, :-3], inputs["input_ids"][:, : output.shape[1] - 3])


def test_limits_of_a_generation_config_count_the_callers_prompt(case, frames):
    inputs = case.inputs(frames[:2])
    length = inputs["input_ids"].shape[1] + 3
    config = GenerationConfig(do_sample=False, max_length=length, pad_token_id=0, eos_token_id=299)
    with compressed(case.model, pruner=PrunerConfig.paper(4)):
        by_name = case.model.generate(**inputs, generation_config=config)
        by_place = case.model.generate(inputs.pop("input_ids"), config, **inputs)
    assert by_name.shape[1] == by_place.shape[1] == length
    assert config.max_length == length


@pytest.mark.skipif(
    transformers.__version__.startswith("5.0."), reason="it counts new tokens alone there"
)
@pytest.mark.parametrize("other", [None, GenerationConfig(do_sample=False)])
def test_limits_of_the_models_own_config_count_the_callers_prompt(case, frames, other):
    inputs = case.inputs(frames[:2])
    length = inputs["input_ids"].shape[1] + 3
    config = case.model.generation_config
    config.max_length, config.eos_token_id, config.pad_token_id = length, 299, 0
    with compressed(case.model, pruner=PrunerConfig.paper(4)):
        assert case.model.generate(**inputs, generation_config=other).shape[1] == length
        assert case.model.generate(**inputs, max_new_tokens=5).shape[1] == length + 2
    assert case.model.generate(**inputs, generation_config=other).shape[1] == length


def test_padding_without_a_mask_is_seen_as_without(case, frames):
    rows = [case.inputs(frames[:2], "Why?"), case.inputs(frames[2:4])]
    pad = case.processor.tokenizer.pad_token_id
    batch = case.together(rows, pad)
    ids = batch.pop("input_ids")
    del batch["attention_mask"]
    ask = {**GREEDY, "return_dict_in_generate": True, "output_logits": True, **batch}
    for ends in ({"pad_token_id": pad}, {"pad_token_id": None}, {"eos_token_id": [7, pad]}, {}):
        given = {**ask, "pad_token_id": pad, **ends}
        expected = case.model.generate(ids, **given).logits[0]
        with compressed(case.model):
            found = case.model.generate(ids, **given).logits[0]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.skipif(
    transformers.__version__.startswith("5.0."), reason="it leaves the whole prompt in"
)
def test_a_conversation_on_one_cache(case, frames):
    """The next question comes with the same video, or is refused: its prompt is longer."""
    inputs = case.inputs(frames[:4])
    more = torch.tensor([case.processor.tokenizer("And then?")["input_ids"]])
    cache = DynamicCache(config=case.model.config.get_text_config())
    with compressed(case.model, pruner=PrunerConfig.paper(4)):
        first = case.model.generate(**inputs, **GREEDY, past_key_values=cache)
        ids = torch.cat([first, more], dim=1)
        again = case.with_ids(inputs, ids)
        expected = case.model.generate(**again, **GREEDY)
        found = case.model.generate(**again, **GREEDY, past_key_values=cache)
        assert torch.equal(found, expected)
        with pytest.raises(ValueError, match="pixel_values_videos must be given with past_key"):
            case.model.generate(ids, **GREEDY, past_key_values=cache)
        new = DynamicCache(config=case.model.config.get_text_config())
        case.model.generate(more, **GREEDY, past_key_values=new)


def test_videos_of_several_threads(case, generator):
    clips = [steps_of_a_quarter(20, generator) for _ in range(2)]
    ask = {**GREEDY, "max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    start = threading.Barrier(2)
    found: list[torch.Tensor | None] = [None, None]

    def run(number: int) -> None:
        start.wait()
        found[number] = case.model.generate(**case.inputs(clips[number]), **ask).logits[0]

    cacher = CacherConfig.paper(update_ratio=0.05, refresh_interval=50)
    with compressed(case.model, cacher=cacher, pruner=PrunerConfig.paper(4)):
        expected = [case.model.generate(**case.inputs(clip), **ask).logits[0] for clip in clips]
        threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for ours, alone in zip(found, expected, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, alone, atol=1e-4, rtol=0)


def test_text_goes_through_untouched(case):
    ids = torch.tensor([case.processor.prompt(QUESTION, video=False).before])
    expected = case.model.generate(ids, **GREEDY)
    with compressed(case.model, pruner=PrunerConfig.paper(4)):
        assert torch.equal(case.model.generate(ids, **GREEDY), expected)
        assert torch.equal(case.model.generate(input_ids=ids, **GREEDY), expected)


def test_everything_is_restored_after_an_error(case, frames):
    own, wanted = case.model.generate, case.placeholders(frames[:2])
    case.model.generate = own
    with (
        pytest.raises(ValueError, match=f"must hold {wanted} times the video token"),
        compressed(case.model, cacher=CacherConfig.paper(), pruner=PrunerConfig.paper(4)),
    ):
        case.model.generate(torch.tensor([[1, 2]]), **case_video(case, frames))
    assert case.model.generate is own
    del case.model.generate
    assert is_plain(case.model)


def case_video(case, frames):
    return case.videos(frames[:2])


def test_wrong_use(case, frames):
    with compressed(case.model):
        with pytest.raises(ValueError, match="compressed already"), compressed(case.model):
            pass
        with pytest.raises(ValueError, match="pixel_values must be None beside a video"):
            case.model.generate(**case.inputs(frames[:2]), pixel_values=torch.zeros(1))
        with pytest.raises(TypeError, match="input_ids must be a tensor, but is a NoneType"):
            case.model.generate(**case_video(case, frames))
    many = compressed(case.model, pruner=PrunerConfig.paper(17))
    with pytest.raises(ValueError, match=rf"must be in 1\.\.{case.tokens(frames)}"), many:
        # Where frames have any size, that is known with the first video.
        case.model.generate(**case.inputs(frames[:2]))
    other = compressed(torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="video LLM of transformers"), other:
        pass
    assert is_plain(case.model)
