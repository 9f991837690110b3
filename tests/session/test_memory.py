"""The full memory: its cache in place of transformers' own, its limit, and what a frame costs."""

from __future__ import annotations

import sys

import pytest
import torch
from session.conftest import QUESTION, only_llava, steps_of_a_quarter
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from stc_stream import CacherConfig, FullMemory, MemoryFullError, PrunerConfig, StreamingSession
from stc_stream.session.memory import layer

WAYS = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 1.5, "top_k": 40},
    "beams": {"do_sample": False, "num_beams": 3},
}


def caches(model, memory=None):
    config = model.config.get_text_config()
    return DynamicCache(config=config), (memory or FullMemory()).open(config)


def generate(model, way, seed, **inputs):
    torch.manual_seed(seed)
    return model.generate(**inputs, **WAYS[way], max_new_tokens=10, pad_token_id=0)


@pytest.mark.parametrize("way", WAYS)
def test_generate_gives_what_it_gives_with_a_dynamic_cache(case, frames, way, seed):
    results = []
    for cache in caches(case.model):
        inputs = {**case.inputs(frames[:3]), "past_key_values": cache}
        results.append(generate(case.model, way, seed, **inputs))
    assert torch.equal(*results)


@pytest.mark.parametrize("way", ["greedy", "sampled"])
def test_generate_goes_on_with_text_after_an_answer(case, frames, way, seed):
    results = []
    for cache in caches(case.model):
        inputs = case.inputs(frames[:3])
        first = generate(case.model, way, seed, **inputs, past_key_values=cache)
        more = torch.tensor([case.processor.tokenizer("And then?")["input_ids"]])
        ids = torch.cat([first, more], dim=1)
        mask = torch.ones_like(ids)
        held = cache.get_seq_length()
        second = generate(
            case.model, way, seed, input_ids=ids, attention_mask=mask, past_key_values=cache
        )
        assert cache.get_seq_length() > held
        results.append(second)
    assert torch.equal(*results)


def test_generate_takes_a_batch(case, seed):
    ids = torch.randint(0, 200, (2, 7), generator=torch.Generator().manual_seed(seed))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    results = [
        generate(case.model, "greedy", seed, **inputs, past_key_values=cache)
        for cache in caches(case.model)
    ]
    assert torch.equal(*results)


def test_the_cache_is_read_as_others_are(case, frames):
    keys = []
    for cache in caches(case.model):
        with torch.no_grad():
            case.model(**case.inputs(frames[:2]), past_key_values=cache)
        cache.crop(-3)
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([1]))
        cache.reorder_cache(torch.tensor([0]))
        keys.append((cache.layers[1].keys, cache.layers[1].values, cache.get_seq_length()))
    for ours, theirs in zip(*keys, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_reset_empties_a_cache(case, frames):
    _, cache = caches(case.model)
    with torch.no_grad():
        case.model(**case.inputs(frames[:2]), past_key_values=cache)
    cache.reset()
    assert cache.get_seq_length() == cache.bytes_device == cache.bytes_reserved == 0
    assert cache.layers[0].keys is None and cache.layers[0].device is None


class Allocations(TorchDispatchMode):
    """Counts the bytes that operations allocate, and those that they copy into what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.allocated = 0
        self.copied = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        known = {
            value.untyped_storage().data_ptr() for value in args if isinstance(value, torch.Tensor)
        }
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.copy_.default:
            self.copied += result.nbytes
        elif isinstance(result, torch.Tensor):
            storage = result.untyped_storage()
            if storage.data_ptr() not in known:
                self.allocated += storage.nbytes()
        return result


@only_llava
@pytest.mark.parametrize("frames", [10, 500, 5000])
def test_writing_a_frame_costs_what_it_has(case, frames):
    """Nothing is allocated after the first frame, and a frame's own bytes alone are copied."""
    cache = FullMemory().open(case.model.config.get_text_config()).layers[0]
    cache.capacity = 16 * 5001
    keys, values = torch.randn(2, 1, 2, 16, 8)
    for _ in range(frames):
        cache.update(keys, values)
    with Allocations() as count:
        cache.update(keys, values)
    assert (count.allocated, count.copied) == (0, keys.nbytes + values.nbytes)
    assert cache.get_seq_length() == 16 * (frames + 1)
    assert torch.equal(cache.keys[:, :, -16:], keys)
    assert torch.equal(cache.values[:, :, :16], values)


@only_llava
def test_allocations_are_counted(case):
    """The measure of the test above sees what transformers' own cache does."""
    cache = DynamicCache(config=case.model.config.get_text_config()).layers[0]
    keys, values = torch.randn(2, 1, 2, 16, 8)
    for _ in range(10):
        cache.update(keys, values)
    with Allocations() as count:
        cache.update(keys, values)
    assert count.allocated == 11 * (keys.nbytes + values.nbytes)


@only_llava
@pytest.mark.parametrize("positions", ["kept", "contiguous"])
def test_what_does_not_fit_is_an_error_before_anything_is_lost(case, generator, positions):
    before = len(case.processor.prompt("?", video=True).before)
    frames = steps_of_a_quarter(8, generator)
    settings = {
        "cacher": CacherConfig.paper(0.1, refresh_interval=3),
        "pruner": PrunerConfig.paper(4),
        "memory": FullMemory(before + 4 * 5),
        "positions": positions,
    }
    with StreamingSession(case.model, case.processor, **settings) as session:
        session.feed(frames[:4], timestamps=[0, 1, 2, 3])
        logits, stats = session.logits(QUESTION), session.stats
        with pytest.raises(MemoryFullError, match=f"holds {before + 16} of {before + 20} tokens"):
            session.feed(frames[4:6])
        assert torch.equal(session.logits(QUESTION), logits)
        assert session.stats == stats
        session.feed(frames[4:5], timestamps=[3])
        assert session.ask(QUESTION, max_new_tokens=20) is not None
        found = session.logits(QUESTION)
    del settings["memory"]
    with StreamingSession(case.model, case.processor, **settings) as session:
        session.feed(frames[:5])
        torch.testing.assert_close(found, session.logits(QUESTION), atol=1e-5, rtol=0)


def test_positions_end_with_the_models_context(seed, frames):
    from session.conftest import make_case

    case = make_case(seed, context=120)
    before = len(case.processor.prompt("?", video=True).before)
    most = (120 - before) // 16
    kept = {"pruner": PrunerConfig.paper(4)}
    with StreamingSession(case.model, case.processor, **kept) as session:
        session.feed(frames[:most])
        stats = session.stats
        with pytest.raises(MemoryFullError, match="context has 120 positions, of which"):
            session.feed(frames[most : most + 1])
        assert session.stats == stats
    with StreamingSession(case.model, case.processor, **kept, positions="contiguous") as session:
        for _ in range((120 - before) // 4 // 8):
            session.feed(frames)
        with pytest.raises(MemoryFullError):
            session.feed(torch.cat([frames, frames]))
        # An answer ends where the context does, and a question that is longer is an error.
        held = session.stats.tokens_held
        asked = len(case.processor.prompt("?", video=True).after) + 1
        chosen: list[int] = []
        session.ask("?", 200, choose=lambda logits: chosen.append(0) or 5)
        assert held + asked + len(chosen) - 1 == 120
        with pytest.raises(MemoryFullError):
            session.ask("?" * 200)
        with pytest.raises(MemoryFullError, match="an answer has 101 tokens"):
            session.score("?", ["a" * 101])


@only_llava
def test_bytes_are_reported(case, frames):
    with StreamingSession(case.model, case.processor, memory=FullMemory(200)) as session:
        empty = session.stats
        session.feed(frames[:3])
        stats = session.stats
    # Two layers, two heads of 16, keys and values, float32.
    assert (empty.bytes_device, empty.bytes_reserved) == (0, 0)
    assert stats.bytes_device == stats.tokens_held * 2 * 2 * 16 * 2 * 4
    assert stats.bytes_reserved == 200 * 2 * 2 * 16 * 2 * 4
    assert stats.bytes_host == 0
    assert (stats.frames, stats.tokens_seen) == (3, 48)
    assert session.stats.tokens_held == session.stats.bytes_reserved == 0


@pytest.mark.parametrize(
    ("tokens", "error", "words"),
    [
        (0, ValueError, "tokens must be at least 1, but is 0"),
        (True, TypeError, "tokens must be an int"),
        ("many", TypeError, "tokens must be an int, but is 'many'"),
        (1.5, TypeError, "tokens must be an int"),
    ],
)
def test_settings_are_checked(tokens, error, words):
    with pytest.raises(error, match=words):
        FullMemory(tokens)


@only_llava
def test_a_memory_is_not_larger_than_the_context(case):
    with pytest.raises(ValueError, match="at most 4096, the model's context, but is 5000"):
        StreamingSession(case.model, case.processor, memory=FullMemory(5000))


@only_llava
def test_a_budget_that_is_known_later_is_checked_before_anything_is_written(case, generator):
    """A pruner without a fixed budget: what it kept does not fit, and none of it counts."""
    frames = steps_of_a_quarter(8, generator)
    before = len(case.processor.prompt("?", video=True).before)

    class Halves:
        def __init__(self) -> None:
            self.seen = 0

        def __call__(self, tokens):
            self.seen += 1
            index = torch.arange(self.seen % 2, 16, 2)[None]
            return type("Pruned", (), {"tokens": tokens[:, index[0]], "index": index})

    settings = {"pruner": Halves(), "memory": FullMemory(before + 8 * 4)}
    with StreamingSession(case.model, case.processor, **settings) as session:
        session.feed(frames[:3])
        stats = session.stats
        with pytest.raises(MemoryFullError, match="and 16 more do not fit"):
            session.feed(frames[3:5])
        assert session.stats == stats
        # The pruner's own past is as before: the fourth frame gives its odd tokens.
        assert session.feed(frames[3:4]).index[0].tolist() == list(range(0, 16, 2))


def interrupted(line, act, files=(layer.__file__,)):
    """Run `act`, with Ctrl-C before the nth line of layer.py that it runs; say whether it came."""
    lines = 0

    def trace(frame, event, _):
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == line:
                raise KeyboardInterrupt
        return trace if frame.f_code.co_filename in files else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_ctrl_c_at_any_line_loses_no_rows(generator):
    """While a fork becomes a stream, and while a stream takes back the room that it has lent."""
    first, own, more = torch.randn(3, 1, 2, 4, 3, generator=generator)
    line, came = 0, True
    while came:
        line += 1
        stream = layer.PreallocatedLayer(20)
        stream.update(first, -first)
        fork, answer = stream.fork(may_borrow=False), stream.fork(may_borrow=True)
        fork.update(more, -more)
        answer.update(own, -own)

        def act(stream=stream, fork=fork):
            fork.own()
            stream.update(more, -more)

        came = interrupted(line, act)
        stream.crop(4 - stream.get_seq_length())
        fork.own()
        stream.update(own, -own)
        for each, rows in ((fork, [first, more]), (answer, [first, own]), (stream, [first, own])):
            assert each.get_seq_length() == 8
            assert torch.equal(each.keys, torch.cat(rows, 2))
            assert torch.equal(each.values, -torch.cat(rows, 2))
    assert line > 30
