"""The retrieval memory against plain runs: what a question brings back, and what that changes."""

from __future__ import annotations

import threading

import pytest
import torch
from session.conftest import QUESTION, make_case, steps_of_a_quarter
from session.oracles import (
    PlainLLM,
    kept_frames,
    question_block,
    run_with_mask,
    stream_blocks,
    window_blocks,
)
from session.test_forks import Watched
from session.test_memory import caches, generate
from session.test_window import Interrupts, settled

from stc_stream import (
    FullMemory,
    MemoryFullError,
    PrunerConfig,
    RecentMemory,
    RetrievalMemory,
    StreamingSession,
    WindowMemory,
)

PRUNED = {"pruner": PrunerConfig.paper(6)}


@pytest.fixture
def family() -> str:
    """Written out for one axis of positions and a frame at a time."""
    return "LLaVA-OneVision"


class Uneven:
    """A pruner that keeps another number of tokens of each frame: of some none."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, tokens):
        self.seen += 1
        index = torch.arange(0, 16)[None, : (5 * self.seen) % 14]
        return type("Pruned", (), {"tokens": tokens[:, index[0]], "index": index})


@pytest.mark.parametrize("settings", [{}, {**PRUNED, "positions": "contiguous"}])
@pytest.mark.parametrize("memory", [RetrievalMemory(), RetrievalMemory(300, 20)])
def test_a_window_over_all_frames_is_full_attention(case, generator, settings, memory):
    frames = steps_of_a_quarter(12, generator)
    found = settled(case, frames, memory, **settings)
    expected = settled(case, frames, FullMemory(), **settings)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [16, 40, 100])
def test_all_frames_brought_back_equal_a_run_with_a_mask(case, generator, window):
    """Each frame sees the text, and of the frames before it a window; the question sees all."""
    frames = steps_of_a_quarter(10, generator)
    blocks = stream_blocks(case, kept_frames(case, frames), "kept")
    question, text = question_block(case, QUESTION), len(blocks[0][0])
    inputs = torch.cat([*(tokens for tokens, _ in blocks), question])
    number = torch.arange(len(inputs))
    seen, end = torch.ones(len(inputs), len(inputs)).tril().bool(), 0
    for tokens, _ in blocks:
        end += len(tokens)
        seen[end - len(tokens) : end, (number >= text) & (number < end - window)] = False
    expected = run_with_mask(case, inputs, number, seen)
    found = settled(case, frames, RetrievalMemory(window, 10))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    whole = settled(case, frames, FullMemory())
    assert (found - whole).abs().max() > 1e-3


@pytest.mark.parametrize("positions", ["kept", "contiguous"])
@pytest.mark.parametrize(
    ("pruner", "blocks"), [(None, 3), (PrunerConfig.paper(6), 4), (Uneven(), 3), (Uneven(), 30)]
)
def test_the_nearest_frames_are_brought_back(case, generator, positions, pruner, blocks):
    """Every layer's frames, chosen by cosine over all query heads, right before the question."""
    frames = steps_of_a_quarter(15, generator)
    kept = kept_frames(case, frames, pruner=pruner)
    window, plain, spans = 50, PlainLLM(case), []
    stream = stream_blocks(case, kept, positions)
    text = len(stream[0][0])
    for tokens, places in stream:
        if not len(tokens):
            spans.append((plain.held, plain.held))
            continue
        seen = window_blocks(plain.held, len(tokens), text, window)
        if positions == "kept":
            past = torch.cat([own for _, own in stream])[seen]
        else:
            past, places = torch.arange(len(seen)), len(seen) + torch.arange(len(tokens))
        spans.append((plain.held, plain.held + len(tokens)))
        plain.run(tokens, places, (seen, past))
    spans = spans[1:]
    most = sum(sorted(end - first for first, end in spans)[-blocks:])
    expected_frames = []

    def nearest(layer, queries):
        query = queries.mean(1)
        scores = []
        for first, end in spans:
            if first == end:
                scores.append(-9.0)
                continue
            mean = plain.keys[layer][:, first:end].mean(1).repeat_interleave(plain.groups, 0)
            scores.append(float(torch.cosine_similarity(query.flatten(), mean.flatten(), dim=0)))
        full = sum(score > -9 for score in scores)
        best = sorted(sorted(range(len(spans)), key=lambda n: -scores[n])[: min(blocks, full)])
        expected_frames.append(tuple(best))
        seen = torch.cat([torch.arange(text), *(torch.arange(*spans[n]) for n in best)])
        places = torch.arange(text + most - (len(seen) - text), text + most)
        return seen, torch.cat([torch.arange(text), places])

    question = question_block(case, QUESTION)
    places = text + most + torch.arange(len(question))
    expected = plain.run(question, places, nearest)
    settings = {
        "memory": RetrievalMemory(window, blocks),
        "positions": positions,
        "pruner": pruner,
    }
    with StreamingSession(case.model, case.processor, **settings) as session:
        assert session.retrieved == ()
        session.feed(frames[:7])
        session.feed(frames[7:])
        found = session.logits(QUESTION)
        assert session.retrieved == tuple(expected_frames)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        # What follows the question sees the same.
        more = case.processor.tokenizer("ab")["input_ids"]
        table = case.model.get_input_embeddings()
        longer = torch.cat([question, table(torch.tensor(more[:1]))])
        later = plain.run(
            longer, text + most + torch.arange(len(longer)), Repeat(nearest, expected_frames, spans)
        )
        chosen = found.log_softmax(-1)[more[0]] + later.log_softmax(-1)[more[1]]
        torch.testing.assert_close(session.score(QUESTION, ["ab"])[0], chosen, atol=1e-3, rtol=0)
        session.reset()
        assert session.retrieved == ()


class Repeat:
    """The past that was found for each layer, again."""

    def __init__(self, nearest, frames, spans) -> None:
        self._nearest, self._frames, self._spans = nearest, list(frames), spans

    def __call__(self, layer, queries):
        # The last row is the answer's, which chooses nothing.
        return self._nearest(layer, queries[:, :-1])


def test_a_stream_goes_on_as_if_nothing_had_been_asked(case, generator):
    frames = steps_of_a_quarter(10, generator)
    memory = RetrievalMemory(40, 3)
    expected = settled(case, frames, memory, **PRUNED)
    with StreamingSession(case.model, case.processor, memory=memory, **PRUNED) as session:
        left = []
        for number in range(10):
            left.append(session.ask("And now?", stream=True, choose=lambda logits: 5))
            next(left[-1])
            session.feed(frames[number : number + 1])
            session.score("Which?", ["one", "the other"])
        torch.testing.assert_close(session.logits(QUESTION), expected, atol=1e-5, rtol=0)


def test_frames_between_two_pieces_change_no_logits(case, generator):
    frames = steps_of_a_quarter(12, generator)
    with StreamingSession(case.model, case.processor, memory=RetrievalMemory(40, 3)) as session:
        session.feed(frames[:8])
        expected = Watched(session, QUESTION).all()
        answers = [Watched(session, QUESTION) for _ in range(2)]
        other = session.fork()
        for number in range(8, 11):
            assert all(answer.step() for answer in answers)
            session.feed(frames[number : number + 1])
        for answer in answers:
            torch.testing.assert_close(answer.all(), expected, atol=1e-6, rtol=0)
        # A fork writes to pages of its own, and its stream to others.
        before = other.logits(QUESTION)
        torch.testing.assert_close(before, expected[0], atol=1e-6, rtol=0)
        other.feed(frames[11:])
        found, stats = other.logits(QUESTION), other.stats
        assert max(other.retrieved[0]) <= 8
        other.close()
    expected = settled(case, frames[[*range(8), 11]], RetrievalMemory(40, 3))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert stats.frames == 9


def test_long_answers_have_room(case, frames):
    """More than what was allocated behind the frames."""
    with StreamingSession(case.model, case.processor, memory=RetrievalMemory(40, 30)) as session:
        session.feed(frames)
        answer = session._stream.ask(QUESTION)
        for token in range(600):
            answer.add(token % 200)
        found = answer.logits
    with StreamingSession(case.model, case.processor, memory=RetrievalMemory(40, 30)) as session:
        session.feed(frames)
        answer = session._stream.ask(QUESTION)
        answer.score([token % 200 for token in range(599)])
        expected = answer._run(case.model.get_input_embeddings()(torch.arange(600) % 200))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("positions", ["kept", "contiguous"])
def test_an_interrupt_leaves_nothing_of_its_chunk(case, generator, positions):
    frames = steps_of_a_quarter(14, generator)
    interrupts = Interrupts(case)
    settings = {"memory": RetrievalMemory(40, 3), "positions": positions}
    with StreamingSession(case.model, case.processor, **settings) as session:
        for fed in (0, 5):
            session.feed(frames[session.stats.frames : fed or 1])
            before, stats = session.logits(QUESTION), session.stats
            for call in (1, 2, 4):
                interrupts.calls = call
                with pytest.raises(KeyboardInterrupt):
                    session.feed(frames[5:11])
                assert session.stats == stats
                assert torch.equal(session.logits(QUESTION), before)
        # One that comes while frames are brought back ends the question, and leaves no hooks.
        interrupts.calls = 1
        with pytest.raises(KeyboardInterrupt):
            session.ask(QUESTION)
        layers = case.model.model.language_model.layers
        assert [len(layer.self_attn._forward_pre_hooks) for layer in layers] == [0, 0]
        assert torch.equal(session.logits(QUESTION), before)
        session.feed(frames[5:])
        found = session.logits(QUESTION)
    interrupts.remove()
    expected = settled(case, frames, RetrievalMemory(40, 3), positions=positions)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_memories_side_by_side_on_one_model_in_threads(seed, generator):
    case = make_case(seed)
    clips = [steps_of_a_quarter(8, generator) for _ in range(4)]
    memories = [RetrievalMemory(30, 2), FullMemory(), RetrievalMemory(60, 3), WindowMemory(4, 40)]
    stock = case.inputs(clips[0][:3])
    tokens = case.model.generate(**stock, max_new_tokens=4, do_sample=False, pad_token_id=0)
    expected = [settled(case, clip, one) for clip, one in zip(clips, memories, strict=True)]
    found: list[torch.Tensor | None] = [None] * 4
    start = threading.Barrier(4)

    def run(number: int) -> None:
        with StreamingSession(case.model, case.processor, memory=memories[number]) as session:
            start.wait()
            for first in range(8):
                session.feed(clips[number][first : first + 1])
                session.ask("What?", 3)
            found[number] = session.logits(QUESTION)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, alone in zip(found, expected, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, alone, atol=1e-4, rtol=0)
    again = case.model.generate(**stock, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(tokens, again)


@pytest.mark.parametrize("pruner", [PrunerConfig.paper(4), Uneven()])
def test_host_memory_has_a_limit(case, generator, pruner):
    """At it the oldest frames go, a page at a time; bytes stay flat, and all is counted."""
    frames = steps_of_a_quarter(8, generator)
    settings = {"memory": RetrievalMemory(64, 3, host_bytes=60_000), "pruner": pruner}
    settings["positions"] = "contiguous"
    stats = []
    with StreamingSession(case.model, case.processor, **settings) as session:
        for _ in range(30):
            session.feed(frames)
            stats.append(session.stats)
            assert stats[-1].bytes_reserved - stats[0].bytes_reserved <= 60_000
            session.logits("?")
            oldest = min(min(layer) for layer in session.retrieved)
            assert stats[-1].frames_forgotten <= oldest < stats[-1].frames
        archive = session._stream.cache._archive
        assert archive.bytes_reserved == sum(filled.page.bytes for filled in archive._filled())
        assert archive.bytes_reserved <= 60_000
        assert archive.rows == sum(archive.counts)
        assert archive.blocks == len(archive.counts)
    last = stats[-1]
    assert 0 < last.bytes_host <= 60_000
    assert last.bytes_device == stats[10].bytes_device
    assert last.frames_forgotten > 100
    if isinstance(pruner, PrunerConfig):
        held = 240 - last.frames_forgotten
        text = len(case.processor.prompt("?", video=True).before)
        assert last.tokens_held == text + 4 * held
        # Two layers, two heads of 16, keys and values, float32; and a mean of the keys.
        assert last.bytes_host == held * (4 * 2 * 2 * 16 * 2 * 4 + 2 * 2 * 16 * 4)


def test_a_limit_below_one_frame(case, frames):
    settings = {"memory": RetrievalMemory(64, 3, host_bytes=5000)}
    with StreamingSession(case.model, case.processor, **settings) as session:
        with pytest.raises(MemoryFullError, match="host_bytes is 5000, but a frame of 16 tokens"):
            session.feed(frames)
        assert session.stats.frames == session.stats.tokens_held == 0


def test_frames_brought_back_fit_into_the_context(seed, frames):
    case = make_case(seed, context=120)
    text = len(case.processor.prompt("?", video=True).before)
    settings = {"memory": RetrievalMemory(40, 8), "positions": "contiguous"}
    with StreamingSession(case.model, case.processor, **settings) as session:
        session.feed(frames[: (119 - text) // 16])
        stats = session.stats
        with pytest.raises(MemoryFullError, match="120 positions, which 8 frames of 16 tokens"):
            session.feed(frames[:1])
        assert session.stats == stats
    settings["memory"] = RetrievalMemory(40, 2)
    with StreamingSession(case.model, case.processor, **settings) as session:
        for _ in range(4):
            session.feed(frames)
        session.ask("?", 3)
        with pytest.raises(MemoryFullError, match="context has 120 positions, of which 38"):
            session.ask("?" * 80)


@pytest.mark.parametrize("way", ["greedy", "sampled"])
def test_generate_within_the_window(case, frames, way, seed):
    results = []
    for cache in caches(case.model, RetrievalMemory(300)):
        inputs = {**case.inputs(frames[:3]), "past_key_values": cache}
        results.append(generate(case.model, way, seed, **inputs))
    assert torch.equal(*results)


def test_attention_in_plain_pytorch_too(case, generator):
    """Frames of different lengths, whose masks differ by layer, also where masks are added."""
    frames = steps_of_a_quarter(9, generator)
    settings = {"memory": RetrievalMemory(30, 2), "pruner": Uneven()}
    found = []
    for attention in ("sdpa", "eager"):
        case.model.set_attn_implementation(attention)
        with StreamingSession(case.model, case.processor, **settings) as session:
            session.feed(frames)
            found.append(Watched(session, QUESTION).all())
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"window_tokens": 0}, ValueError, "window_tokens must be at least 1, but is 0"),
        ({"window_tokens": None}, TypeError, "window_tokens must be an int, but is None"),
        ({"blocks": 0}, ValueError, "blocks must be at least 1, but is 0"),
        ({"blocks": 1.5}, TypeError, "blocks must be an int, but is 1.5"),
        ({"host_bytes": 0}, ValueError, "host_bytes must be at least 1, but is 0"),
        ({"host_bytes": "8 GB"}, TypeError, "host_bytes must be an int, but is '8 GB'"),
    ],
)
def test_settings_are_checked(settings, error, words):
    with pytest.raises(error, match=words):
        RetrievalMemory(**settings)


def test_models_that_it_does_not_fit(case):
    config = case.model.config.get_text_config()
    memory = RetrievalMemory()
    plain = config.rope_parameters
    for rope, error, words in (
        ({**plain, "mrope_section": [2, 3, 3]}, TypeError, "positions of one axis.*have several"),
        ({**plain, "rope_type": "yarn", "factor": 2.0}, ValueError, "rope_type 'default'"),
    ):
        config.rope_parameters = rope
        with pytest.raises(error, match=words):
            StreamingSession(case.model, case.processor, memory=memory)
    config.rope_parameters = plain
    config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="layers see all tokens, but the model's layer_types"):
        StreamingSession(case.model, case.processor, memory=memory)


def test_an_llm_of_another_form(case, frames):
    attention = case.model.model.language_model.layers[0].self_attn
    del attention.head_dim
    with (
        StreamingSession(case.model, case.processor, memory=RetrievalMemory()) as session,
        pytest.raises(TypeError, match="self_attn.q_proj and self_attn.head_dim.*a Qwen2Model"),
    ):
        session.feed(frames)


def test_other_memories_bring_nothing_back(case, frames):
    for memory in (None, RecentMemory(2), WindowMemory(4, 40)):
        with StreamingSession(case.model, case.processor, memory=memory) as session:
            session.feed(frames)
            session.logits(QUESTION)
            assert session.retrieved == ()
