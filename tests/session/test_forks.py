"""Answers and forks: what they share, and that nobody sees what another one writes."""

from __future__ import annotations

import gc

import pytest
import torch
from session.conftest import QUESTION
from torch import Tensor

from stc_stream import CacherConfig, FullMemory, PrunerConfig, StreamingSession


class Watched:
    """An answer on its way, with the logits of each of its tokens."""

    def __init__(self, session: StreamingSession, question: str, tokens: int = 8) -> None:
        self.logits: list[Tensor] = []
        self._pieces = session.ask(question, tokens, stream=True, choose=self._choose)

    def step(self) -> bool:
        """Take a token; say whether there was one."""
        before = len(self.logits)
        for _ in self._pieces:
            break
        return len(self.logits) > before

    def all(self) -> Tensor:
        for _ in self._pieces:
            pass
        return torch.stack(self.logits)

    def _choose(self, logits: Tensor) -> int:
        self.logits.append(logits)
        # Letters alone: a piece comes with each token.
        return int(logits[:20].argmax())


@pytest.fixture(params=["room to spare", "full"])
def memory(request, case, frames):
    """When it is full, seven frames fill the memory: answers need room elsewhere."""
    if request.param == "room to spare":
        return FullMemory()
    before = len(case.processor.prompt("?", video=True).before)
    return FullMemory(before + case.block(frames) * (7 // case.deep) + 2)


def test_frames_between_two_pieces_change_no_logits(case, frames, memory):
    with StreamingSession(case.model, case.processor, memory=memory) as session:
        session.feed(frames[:4])
        expected = Watched(session, QUESTION).all()
        answer = Watched(session, QUESTION)
        for number in range(4, 7):
            assert answer.step()
            session.feed(frames[number : number + 1])
        assert torch.equal(answer.all(), expected)
        torch.testing.assert_close(
            session.logits(QUESTION), case.logits(frames[:7]), atol=1e-4, rtol=0
        )


def test_two_answers_at_once_change_no_logits(case, frames, memory):
    with StreamingSession(case.model, case.processor, memory=memory) as session:
        session.feed(frames[:5])
        questions = (QUESTION, "Who?", "And why is it so?")
        expected = [Watched(session, question).all() for question in questions]
        answers = [Watched(session, question) for question in questions]
        for answer in (*answers, *reversed(answers)):
            assert answer.step()
        session.feed(frames[5:6])
        for answer, alone in zip(answers, expected, strict=True):
            torch.testing.assert_close(answer.all(), alone, atol=1e-6, rtol=0)


def test_the_stream_goes_on_as_if_nothing_had_been_asked(case, frames):
    pruner = PrunerConfig.paper(6)
    with StreamingSession(case.model, case.processor, pruner=pruner) as never:
        never.feed(frames)
        expected = never.logits(QUESTION)
    with StreamingSession(case.model, case.processor, pruner=pruner) as session:
        left = []
        for number in range(8):
            left.append(session.ask("And now?", stream=True, choose=lambda logits: 70))
            next(left[-1])
            session.feed(frames[number : number + 1])
            session.score("Which?", ["one", "the other"])
        stats = session.stats
        torch.testing.assert_close(session.logits(QUESTION), expected, atol=1e-5, rtol=0)
        assert session.stats == stats


def test_an_answer_copies_no_keys(case, frames):
    with StreamingSession(case.model, case.processor) as session:
        session.feed(frames[:3])
        layers = session._stream.cache.layers
        stores = [layer._store.keys.untyped_storage().data_ptr() for layer in layers]
        answer = session._stream.ask(QUESTION)
        answer.add(5)
        for layer, store in zip(answer._cache.layers, stores, strict=True):
            assert layer.keys.untyped_storage().data_ptr() == store
            assert layer.values.shape[2] == layer.get_seq_length() > layers[0].get_seq_length()
        assert answer._cache.bytes_reserved == 0
        own = answer._cache.get_seq_length() - session.stats.tokens_held
        session.feed(frames[3:4])
        # Now its own tokens, and they alone, lie elsewhere.
        a_token = session.stats.bytes_device // session.stats.tokens_held
        assert answer._cache.bytes_reserved == own * a_token


def test_room_is_lent_again_when_an_answer_is_gone(case, frames):
    with StreamingSession(case.model, case.processor) as session:
        session.feed(frames[:2])
        for _ in range(3):
            answer = session._stream.ask(QUESTION)
            assert answer._cache.bytes_reserved == 0
            second = session._stream.ask(QUESTION)
            assert second._cache.bytes_reserved > 0
            del answer, second
            gc.collect()


def test_a_fork_goes_its_own_way(case, frames):
    pruner = PrunerConfig.paper(6)
    with StreamingSession(case.model, case.processor, pruner=pruner) as session:
        session.feed(frames[:3])
        before = session.logits(QUESTION)
        other = session.fork()
        assert other.stats.tokens_held == session.stats.tokens_held
        assert other.stats.bytes_reserved == 0
        assert torch.equal(other.logits(QUESTION), before)
        other.feed(frames[3:5])
        assert torch.equal(session.logits(QUESTION), before)
        session.feed(frames[5:8])
        later = other.logits(QUESTION)
        other.feed(frames[7:8])
        session.close()
        with StreamingSession(case.model, case.processor, pruner=pruner) as alone:
            alone.feed(torch.cat([frames[:3], frames[3:5]]))
            torch.testing.assert_close(later, alone.logits(QUESTION), atol=1e-5, rtol=0)
            alone.feed(frames[7:8])
            alone_bytes = alone.stats.bytes_reserved
            torch.testing.assert_close(
                other.logits(QUESTION), alone.logits(QUESTION), atol=1e-5, rtol=0
            )
        # It has a store of its own now, and appends to it as a stream does.
        assert other.stats.bytes_reserved == alone_bytes
        other.close()


def test_a_fork_of_a_fork_and_answers_on_them(case, frames):
    with StreamingSession(case.model, case.processor) as session:
        session.feed(frames[:2])
        first = session.fork()
        second = first.fork()
        second.feed(frames[2:4])
        answer = Watched(first, QUESTION)
        assert answer.step()
        session.feed(frames[4:6])
        first.feed(frames[6:7])
        torch.testing.assert_close(answer.logits[0], case.logits(frames[:2]), atol=1e-4, rtol=0)
        for fork, shown in ((second, [0, 1, 2, 3]), (first, [0, 1, 6]), (session, [0, 1, 4, 5])):
            expected = case.logits(frames[shown])
            torch.testing.assert_close(fork.logits(QUESTION), expected, atol=1e-4, rtol=0)
        expected = Watched(session, QUESTION).all()
        assert answer.all().shape == expected.shape
        first.close()
        second.close()


def test_a_fork_starts_with_a_refresh_in_the_tower(case, frames):
    config = CacherConfig.paper(refresh_interval=4)
    with StreamingSession(case.model, case.processor, cacher=config) as session:
        session.feed(frames[:2])
        other = session.fork()
        other.feed(frames[2:4])
        other_logits = other.logits(QUESTION)
        other.close()
        session.feed(frames[2:4])
        assert not torch.equal(session.logits(QUESTION), other_logits)


def test_answers_go_on_after_reset_and_close(case, frames):
    session = StreamingSession(case.model, case.processor)
    session.feed(frames[:3])
    expected = Watched(session, QUESTION).all()
    first, second = Watched(session, QUESTION), Watched(session, QUESTION)
    assert first.step() and second.step()
    session.reset()
    session.feed(frames[3:6])
    assert torch.equal(first.all(), expected)
    session.close()
    torch.testing.assert_close(second.all(), expected, atol=1e-6, rtol=0)


def test_ctrl_c_ends_an_answer_and_leaves_the_stream(case, frames):
    def interrupt(logits: Tensor) -> int:
        raise KeyboardInterrupt

    with StreamingSession(case.model, case.processor) as session:
        session.feed(frames[:3])
        before, stats = session.logits(QUESTION), session.stats
        with pytest.raises(KeyboardInterrupt):
            session.ask(QUESTION, choose=interrupt)
        assert torch.equal(session.logits(QUESTION), before)
        assert session.stats == stats
        session.feed(frames[3:4])
        torch.testing.assert_close(
            session.logits(QUESTION), case.logits(frames[:4]), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("kind", [int, torch.tensor, lambda token: torch.tensor([token])])
def test_an_answer_ends_where_its_end_is_chosen(case, frames, kind):
    """Also by a function that returns a tensor, as `torch.argmax` does."""
    end = case.processor.tokenizer.eos_token_id
    with StreamingSession(case.model, case.processor) as session:
        session.feed(frames[:1])
        letters = iter([70, 71, end, 72])
        text = session.ask(QUESTION, 4, choose=lambda logits: kind(next(letters)))
    assert len(text) == 2
    assert next(letters) == 72
