"""The recent memory: an answer is that of a new session which saw the last frames alone."""

from __future__ import annotations

import pytest
import torch
from session.conftest import QUESTION, make_case, steps_of_a_quarter
from session.oracles import PlainLLM, kept_frames, question_block, stream_blocks
from session.test_forks import Watched

from stc_stream import CacherConfig, MemoryFullError, PrunerConfig, RecentMemory, StreamingSession

COMPRESSED = {
    "cacher": CacherConfig.paper(0.25, refresh_interval=3),
    "pruner": PrunerConfig.paper(6),
}


@pytest.fixture
def family() -> str:
    """Written out for one axis of positions and a frame at a time."""
    return "LLaVA-OneVision"


@pytest.mark.parametrize("fed", [0, 2, 3, 8])
def test_it_answers_as_the_stock_model_on_the_last_frames(case, frames, fed):
    with StreamingSession(case.model, case.processor, memory=RecentMemory(3)) as session:
        for frame in frames[:fed]:
            session.feed(frame[None])
        found, stats = session.logits(QUESTION), session.stats
    if fed:
        expected = case.logits(frames[:fed][-3:])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    else:
        with StreamingSession(case.model, case.processor) as session:
            assert torch.equal(found, session.logits(QUESTION))
    assert stats.frames == fed
    text = len(case.processor.prompt("?", video=True).before)
    assert stats.tokens_held == (text + 16 * min(fed, 3) if fed else 0)
    assert stats.frames_forgotten == max(fed - 3, 0)


@pytest.mark.parametrize("positions", ["kept", "contiguous"])
def test_it_answers_as_a_new_session_given_the_same_kept_tokens(case, generator, positions):
    """What Cacher and Pruner keep depends on all frames; what the LLM reads, on the last ones."""
    frames = steps_of_a_quarter(9, generator)
    kept = kept_frames(case, frames, **COMPRESSED)[-4:]
    plain, places = PlainLLM(case), torch.arange(0)
    blocks = stream_blocks(case, kept, positions)
    for tokens, own in blocks:
        plain.run(tokens, own, (torch.arange(plain.held), places))
        places = torch.cat([places, own])
    end = len(blocks[0][0]) + 4 * (16 if positions == "kept" else 6)
    question = question_block(case, QUESTION)
    expected = plain.run(
        question, end + torch.arange(len(question)), (torch.arange(plain.held), places)
    )
    settings = {**COMPRESSED, "memory": RecentMemory(), "positions": positions}
    with StreamingSession(case.model, case.processor, **settings) as session:
        session.feed(frames[:5])
        session.logits(QUESTION)
        session.feed(frames[5:])
        found = session.logits(QUESTION)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_frames_are_prefilled_once_for_all_questions_between_two(case, frames):
    calls = []
    llm = case.model.model.language_model
    hook = llm.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["inputs_embeds"].shape[1]),
        with_kwargs=True,
    )
    with StreamingSession(case.model, case.processor, memory=RecentMemory(2)) as session:
        session.feed(frames[:5])
        assert not calls
        first = session.logits(QUESTION)
        prefill, question = calls
        assert prefill == session.stats.tokens_held
        assert torch.equal(session.logits(QUESTION), first)
        assert calls[2:] == [question]
        session.feed(frames[5:6])
        session.logits(QUESTION)
        assert calls[3:] == [prefill, question]
    hook.remove()


def test_frames_between_two_pieces_change_no_logits(case, frames):
    with StreamingSession(case.model, case.processor, memory=RecentMemory(2)) as session:
        session.feed(frames[:3])
        expected = Watched(session, QUESTION).all()
        answers = [Watched(session, QUESTION) for _ in range(2)]
        for number in range(3, 6):
            assert all(answer.step() for answer in answers)
            session.feed(frames[number : number + 1])
            session.logits("Who?")
        for answer in answers:
            torch.testing.assert_close(answer.all(), expected, atol=1e-6, rtol=0)
        other = session.fork()
        other.feed(frames[6:7])
        session.feed(frames[7:8])
        for one, last in ((other, 6), (session, 7)):
            expected = case.logits(frames[[5, last]])
            torch.testing.assert_close(one.logits(QUESTION), expected, atol=1e-4, rtol=0)
        other.close()


def test_an_error_leaves_the_frames_before_it(case, frames):
    with StreamingSession(case.model, case.processor, memory=RecentMemory(3)) as session:
        session.feed(frames[:5])
        before, stats = session.logits(QUESTION), session.stats
        calls = []

        def interrupt(*_) -> None:
            calls.append(1)
            raise KeyboardInterrupt

        hook = case.model.model.vision_tower.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            session.feed(frames[5:])
        hook.remove()
        assert calls
        assert session.stats == stats
        assert torch.equal(session.logits(QUESTION), before)
        # An interrupted prefill is done again.
        session.feed(frames[5:6])
        hook = case.model.model.language_model.layers[1].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            session.logits(QUESTION)
        hook.remove()
        expected = case.logits(frames[3:6])
        torch.testing.assert_close(session.logits(QUESTION), expected, atol=1e-4, rtol=0)


def test_bytes_are_flat_and_those_of_the_frames(case, frames):
    settings = {"memory": RecentMemory(3), "pruner": PrunerConfig.paper(4)}
    with StreamingSession(case.model, case.processor, **settings) as session:
        session.feed(frames)
        first = session.stats
        for _ in range(25):
            session.feed(frames)
        last = session.stats
        before = len(case.processor.prompt("?", video=True).before)
        assert last.tokens_held == first.tokens_held == before + 3 * 4
        # Tokens of 64 numbers in float32, and their places in int64.
        assert last.bytes_device == first.bytes_device == 3 * 4 * (64 * 4 + 8)
        assert last.bytes_reserved == first.bytes_reserved == first.bytes_device
        assert (last.bytes_host, last.frames_forgotten) == (0, 26 * 8 - 3)
        session.logits(QUESTION)
        assert session.stats.bytes_device > last.bytes_device
        session.feed(frames[:1])
        assert session.stats.bytes_reserved == last.bytes_reserved


def test_a_frame_does_not_keep_its_chunk(case, frames):
    with StreamingSession(case.model, case.processor, memory=RecentMemory(2)) as session:
        session.feed(frames)
        for frame in session._stream.cache._frames:
            assert frame.tokens.untyped_storage().nbytes() == 16 * 64 * 4


def test_a_stream_has_no_end(seed, frames):
    case = make_case(seed, context=100)
    with StreamingSession(case.model, case.processor, memory=RecentMemory(3)) as session:
        for _ in range(3):
            session.feed(frames)
        expected = case.logits(frames[-3:], "?")
        torch.testing.assert_close(session.logits("?"), expected, atol=1e-4, rtol=0)
        with pytest.raises(MemoryFullError, match="context has 100 positions, of which 54 are"):
            session.ask("?" * 40)


@pytest.mark.parametrize(
    ("frames", "error", "words"),
    [
        (0, ValueError, "frames must be at least 1, but is 0"),
        (True, TypeError, "frames must be an int, but is True"),
        ("all", TypeError, "frames must be an int, but is 'all'"),
    ],
)
def test_settings_are_checked(frames, error, words):
    with pytest.raises(error, match=words):
        RecentMemory(frames)


def test_frames_that_the_context_has_no_room_for(seed, frames):
    case = make_case(seed, context=100)
    words = "frames must be at most 5, for 16 tokens each and 6 of text .* 100 positions, but is 6"
    with pytest.raises(ValueError, match=words):
        StreamingSession(case.model, case.processor, memory=RecentMemory(6))
    settings = {"memory": RecentMemory(20), "positions": "contiguous"}
    with StreamingSession(case.model, case.processor, **settings) as session:
        session.feed(frames[:5])
        stats = session.stats
        with pytest.raises(MemoryFullError, match="of which 86 are taken and 16 more are needed"):
            session.feed(frames[5:6])
        assert session.stats == stats
    with StreamingSession(
        case.model, case.processor, pruner=PrunerConfig.paper(4), **settings
    ) as session:
        session.feed(frames)
        session.feed(frames)
        session.feed(frames)
        assert session.stats.frames_forgotten == 4
