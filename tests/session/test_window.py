"""The window memory against plain runs: sinks and last tokens, kept or renumbered positions."""

from __future__ import annotations

import pytest
import torch
from session.conftest import QUESTION, make_case, steps_of_a_quarter
from session.oracles import (
    PlainLLM,
    kept_frames,
    masked_run,
    question_block,
    stream_blocks,
    window_blocks,
)
from session.test_forks import Watched
from session.test_memory import Allocations, caches, generate, interrupted

from stc_stream import FullMemory, MemoryFullError, PrunerConfig, StreamingSession, WindowMemory
from stc_stream.session.memory import layer, window
from stc_stream.session.memory.rotary import Rotary
from stc_stream.session.memory.window import WindowLayer

PRUNED = {"pruner": PrunerConfig.paper(6)}
SIZES = [(0, 20), (3, 33), (20, 16), (40, 50)]


@pytest.fixture
def family() -> str:
    """Written out for one axis of positions and a frame at a time."""
    return "LLaVA-OneVision"


def settled(case, frames, memory, **settings):
    with StreamingSession(case.model, case.processor, memory=memory, **settings) as session:
        for frame in frames:
            session.feed(frame[None])
        return session.logits(QUESTION)


@pytest.mark.parametrize(("sink", "size"), SIZES)
@pytest.mark.parametrize("settings", [{}, PRUNED], ids=["all tokens", "pruned"])
def test_kept_positions_equal_one_run_with_a_mask(case, generator, sink, size, settings):
    frames = steps_of_a_quarter(24, generator)
    kept = kept_frames(case, frames, **settings)
    blocks = stream_blocks(case, kept, "kept")
    question, first = question_block(case, QUESTION), len(blocks[0][0]) + 16 * len(frames)
    expected = masked_run(case, blocks, question, first, sink, size)
    found = settled(case, frames, WindowMemory(sink, size), **settings)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    whole = settled(case, frames, FullMemory(), **settings)
    assert (found - whole).abs().max() > 1e-3


@pytest.mark.parametrize(("sink", "size"), SIZES)
@pytest.mark.parametrize("settings", [{}, PRUNED], ids=["all tokens", "pruned"])
def test_renumbered_positions_equal_keys_turned_from_the_start(
    case, generator, sink, size, settings
):
    """Each block sees sinks and window at 0, 1, 2, ..., and comes behind them."""
    frames = steps_of_a_quarter(24, generator)
    plain = PlainLLM(case)
    kept = kept_frames(case, frames, **settings)
    for tokens, _ in stream_blocks(case, kept, "contiguous"):
        seen = window_blocks(plain.held, len(tokens), sink, size)
        places = torch.arange(len(seen) + len(tokens))
        plain.run(tokens, places[len(seen) :], (seen, places[: len(seen)]))
    question = question_block(case, QUESTION)
    seen = window_blocks(plain.held, 0, sink, size)
    places = torch.arange(len(seen) + len(question))
    expected = plain.run(question, places[len(seen) :], (seen, places[: len(seen)]))
    settings = {**settings, "positions": "contiguous"}
    found = settled(case, frames, WindowMemory(sink, size), **settings)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("positions", ["kept", "contiguous"])
def test_a_window_that_is_not_full_is_the_full_memory(case, frames, positions):
    found = settled(case, frames, WindowMemory(4, 16 * 8 + 20), positions=positions)
    expected = settled(case, frames, FullMemory(), positions=positions)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("positions", ["kept", "contiguous"])
def test_frames_between_two_pieces_change_no_logits(case, generator, positions):
    frames = steps_of_a_quarter(16, generator)
    settings = {"memory": WindowMemory(5, 40), "positions": positions}
    with StreamingSession(case.model, case.processor, **settings) as session:
        session.feed(frames[:6])
        expected = Watched(session, QUESTION).all()
        answer, second = Watched(session, QUESTION), Watched(session, "Who?")
        alone = Watched(session, "Who?").all()
        for number in range(6, 14):
            assert answer.step() or number > 12
            session.feed(frames[number : number + 1])
        torch.testing.assert_close(answer.all(), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(second.all(), alone, atol=1e-6, rtol=0)
        never = settled(case, frames[:14], WindowMemory(5, 40), positions=positions)
        torch.testing.assert_close(session.logits(QUESTION), never, atol=1e-4, rtol=0)
        # A fork goes its own way behind rows that the stream evicts meanwhile.
        other = session.fork()
        before = other.logits(QUESTION)
        session.feed(frames[14:])
        assert torch.equal(other.logits(QUESTION), before)
        for first in (14, 15):
            other.feed(frames[first : first + 1])
        torch.testing.assert_close(
            other.logits(QUESTION), session.logits(QUESTION), atol=1e-4, rtol=0
        )
        other.close()


def test_an_answer_copies_no_keys(case, frames):
    with StreamingSession(case.model, case.processor, memory=WindowMemory(4, 48)) as session:
        for number in range(8):
            session.feed(frames[number : number + 1])
        layers = session._stream.cache.layers
        stores = [layer.keys.untyped_storage().data_ptr() for layer in layers]
        answer = session._stream.ask("?")
        for one, store in zip(answer._cache.layers, stores, strict=True):
            assert one.keys.untyped_storage().data_ptr() == store
        assert answer._cache.bytes_reserved == 0
        assert session.stats.tokens_held == 52


class Interrupts:
    """Interrupts an LLM in its second layer, at the nth call."""

    def __init__(self, case) -> None:
        self.calls = 0
        hook = case.model.model.language_model.layers[1].register_forward_pre_hook(self)
        self.remove = hook.remove

    def __call__(self, *_) -> None:
        self.calls -= 1
        if self.calls == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("positions", ["kept", "contiguous"])
def test_an_interrupt_brings_evicted_tokens_back(case, generator, positions):
    """Also those of frames before it in its chunk, and those under the sinks."""
    frames = steps_of_a_quarter(18, generator)
    interrupts = Interrupts(case)
    for sink in (0, 3, 30):
        settings = {"memory": WindowMemory(sink, 40), "positions": positions}
        with StreamingSession(case.model, case.processor, **settings) as session:
            session.feed(frames[:8])
            before, stats = session.logits(QUESTION), session.stats
            for call in (1, 2, 3, 5):
                interrupts.calls = call
                with pytest.raises(KeyboardInterrupt):
                    session.feed(frames[8:14])
                assert session.stats == stats
                assert torch.equal(session.logits(QUESTION), before)
            session.feed(frames[8:])
            found = session.logits(QUESTION)
        expected = settled(case, frames, WindowMemory(sink, 40), positions=positions)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    interrupts.remove()


def test_ctrl_c_at_any_line_loses_no_rows(generator):
    """While rows are evicted and written, in place and to another store."""
    rows = torch.randn(14, 1, 2, 4, 6, generator=generator)
    rotary = Rotary(torch.tensor([1.0, 0.1, 0.01]))
    files = (layer.__file__, window.__file__)
    line, came = 0, True
    while came:
        line += 1
        stream, plain = (WindowLayer(3, 12, rotary) for _ in range(2))
        for one in (stream, plain):
            for new in rows[:5]:
                one.update(new, -new)
        saved = stream.save()

        def act(stream=stream):
            for new in rows[5:12]:
                stream.update(new, -new)

        came = interrupted(line, act, files)
        stream.restore(saved)
        assert torch.equal(stream.keys, plain.keys)
        assert torch.equal(stream.values, plain.values)
        for new in rows[5:]:
            torch.testing.assert_close(*(one.update(new, -new) for one in (stream, plain)))
    assert line > 60


@pytest.mark.parametrize("positions", ["kept", "contiguous"])
def test_a_stream_without_end(seed, generator, positions):
    """Renumbered, it goes far beyond the context; kept, it ends there, and loses nothing."""
    case = make_case(seed, context=160)
    frames = steps_of_a_quarter(10, generator)
    settings = {"memory": WindowMemory(4, 64), "positions": positions}
    before = len(case.processor.prompt("?", video=True).before)
    with StreamingSession(case.model, case.processor, **settings) as session:
        if positions == "kept":
            session.feed(frames[: (160 - before) // 16 - 1])
            logits, stats = session.logits("?"), session.stats
            with pytest.raises(MemoryFullError, match="context has 160 positions, of which"):
                session.feed(frames[:2])
            assert session.stats == stats
            assert torch.equal(session.logits("?"), logits)
            return
        for _ in range(8):
            session.feed(frames)
            assert session.stats.tokens_held == 68
            assert session._stream.progress.place.reach <= 160
        stats = session.stats
        assert stats.frames == 80
        assert stats.frames_forgotten == 80 - 4
        # An answer has room for what the context leaves beside the tokens held.
        chosen: list[int] = []
        session.ask("?", 500, choose=lambda logits: chosen.append(0) or 5)
        asked = len(case.processor.prompt("?", video=True).after) + 1
        assert 68 + asked + len(chosen) - 1 == 160


@pytest.mark.parametrize("positions", ["kept", "contiguous"])
@pytest.mark.parametrize("memory", [WindowMemory(4, 64), WindowMemory(0, 40)])
def test_bytes_are_flat(case, frames, positions, memory):
    """On 400 frames: what is held and what is allocated is what it was at 20."""
    settings = {"pruner": PrunerConfig.paper(4), "memory": memory, "positions": positions}
    with StreamingSession(case.model, case.processor, **settings) as session:
        for _ in range(3):
            session.feed(frames)
        first = session.stats
        for _ in range(26):
            session.feed(frames)
        last = session.stats
    assert last.frames == 29 * 8
    for name in ("tokens_held", "bytes_device", "bytes_host", "bytes_reserved"):
        assert getattr(first, name) == getattr(last, name)
    # Two layers, two heads of 16, keys and values, float32.
    assert last.bytes_device == last.tokens_held * 2 * 2 * 16 * 2 * 4
    # A frame of four tokens, of which the first may be among the sinks.
    assert last.frames - last.frames_forgotten in (memory.window_tokens // 4, 1 + 10)


@pytest.mark.parametrize("frames", [50, 5000])
def test_writing_a_frame_costs_what_it_has(case, frames):
    """Nothing is allocated; beside its own bytes, the sinks are written, and seldom all rows."""
    one = WindowLayer(8, 64, None)
    keys, values = torch.randn(2, 1, 2, 16, 8)
    for _ in range(frames):
        one.update(keys, values)
    costs = []
    for _ in range(10):
        with Allocations() as count:
            one.update(keys, values)
        costs.append((count.allocated, count.copied))
    row = 2 * 2 * 8 * 4
    # Once in so many frames all rows move to the beginning: 160 fit, and 72 are held.
    own, moved = (0, (16 + 8) * row), (0, (16 + 8 + 48) * row)
    assert set(costs) == {own, moved}
    assert 1 <= costs.count(moved) <= 2


def test_rows_are_turned_as_the_model_turns_them(case, generator):
    config = case.model.config.get_text_config()
    llm = case.model.model.language_model
    rotary = Rotary.of(config, "a test")
    keys = torch.randn(1, 2, 9, 16, generator=generator)
    places = torch.randint(0, 4000, (9,), generator=generator)
    cos, sin = llm.rotary_emb(keys, places[None])
    half = torch.cat([-keys[..., 8:], keys[..., :8]], -1)
    expected = keys * cos[:, None] + half * sin[:, None]
    turned = rotary.turn(keys, places)
    torch.testing.assert_close(turned, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(rotary.turn(turned, places, back=True), keys, atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", ["greedy", "sampled", "beams"])
def test_generate_within_the_window(case, frames, way, seed):
    """The tokens are those with transformers' own cache; with text after the answer too."""
    results = []
    for cache in caches(case.model, WindowMemory(4, 300)):
        inputs = {**case.inputs(frames[:3]), "past_key_values": cache}
        ids = generate(case.model, way, seed, **inputs)
        if way != "beams":
            ids = torch.cat([ids, torch.tensor([[70, 71, 72]])], dim=1)
            mask = torch.ones_like(ids)
            more = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}
            ids = generate(case.model, way, seed, **more)
        results.append(ids)
    assert torch.equal(*results)


def test_generate_beyond_the_window(case, generator):
    """A step at a time, tokens that leave the window are as if masked."""
    ids = torch.randint(0, 200, (1, 30), generator=generator)
    cache = WindowMemory(3, 30).open(case.model.config.get_text_config())
    with torch.no_grad():
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        output = case.model.generate(
            **inputs,
            past_key_values=cache,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        seen = torch.ones(42, 42).tril().bool()
        for row in range(33, 42):
            seen[row, 3 : row - 29] = False
        table = case.model.get_input_embeddings()
        inputs = table(output[0])
        mask = torch.zeros(42, 42).masked_fill(~seen, torch.finfo(torch.float32).min)
        logits = case.model.lm_head(
            case.model.model.language_model(
                inputs_embeds=inputs[None], attention_mask=mask[None, None], use_cache=False
            ).last_hidden_state[0]
        )
    assert output[0, 30:].tolist() == logits[29:41].argmax(-1).tolist()
    assert cache.get_seq_length() == 41
    assert cache.tokens_held == 33


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"sink_tokens": -1}, ValueError, "sink_tokens must be at least 0, but is -1"),
        ({"sink_tokens": 1.0}, TypeError, "sink_tokens must be an int, but is 1.0"),
        ({"window_tokens": 0}, ValueError, "window_tokens must be at least 1, but is 0"),
        ({"window_tokens": True}, TypeError, "window_tokens must be an int, but is True"),
    ],
)
def test_settings_are_checked(settings, error, words):
    with pytest.raises(error, match=words):
        WindowMemory(**settings)


def test_models_that_it_does_not_fit(seed):
    case = make_case(seed, context=100)
    with pytest.raises(ValueError, match="at most 100 together, the model's context, but are 64"):
        StreamingSession(case.model, case.processor, memory=WindowMemory(64, 40))
    config = case.model.config.get_text_config()
    settings = {"memory": WindowMemory(4, 40), "positions": "contiguous"}
    plain = config.rope_parameters
    for rope, error, words in (
        ({**plain, "mrope_section": [2, 3, 3]}, TypeError, "rotary positions of one axis"),
        ({**plain, "rope_type": "yarn", "factor": 2.0}, ValueError, "rope_type 'default'"),
        ({**plain, "rope_type": "dynamic", "factor": 2.0}, ValueError, "rope_type 'default'"),
        ({**plain, "partial_rotary_factor": 0.5}, ValueError, "partial_rotary_factor is 0.5"),
    ):
        config.rope_parameters = rope
        with pytest.raises(error, match=words):
            StreamingSession(case.model, case.processor, **settings)
        # Kept positions need no keys turned.
        kept = {**settings, "positions": "kept"}
        StreamingSession(case.model, case.processor, **kept).close()


def test_frames_that_the_window_has_no_room_for(case, frames):
    with StreamingSession(case.model, case.processor, memory=WindowMemory(20, 15)) as session:
        with pytest.raises(MemoryFullError, match="room for 15 tokens, but 16 come at once"):
            session.feed(frames)
        assert session.stats.frames == session.stats.tokens_held == 0
    # The text before the video is longer than the window, but has room among the sinks.
    text = len(case.processor.prompt("?", video=True).before)
    small = StreamingSession(
        case.model, case.processor, memory=WindowMemory(text, 3), pruner=PrunerConfig.paper(4)
    )
    with pytest.raises(MemoryFullError, match="room for 3 tokens, but 4 come at once"):
        small.feed(frames)
    cache, inputs = (
        WindowMemory(4, 9).open(case.model.config.get_text_config()),
        torch.zeros(20, 64),
    )
    with pytest.raises(MemoryFullError, match="room for 9 tokens, but 20 come at once"):
        case.model.model.language_model(inputs_embeds=inputs[None], past_key_values=cache)
