"""Methods through sessions, against plain sessions that are run by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from session.conftest import Case, make_case, steps_of_a_quarter
from torch import Tensor

import stc_stream.evaluate.answers as answers_module
from stc_stream import (
    CacherConfig,
    FullMemory,
    MemoryFullError,
    PrunerConfig,
    RecentMemory,
    RetrievalMemory,
    StreamingSession,
    WindowMemory,
)
from stc_stream.evaluate.answers import (
    STAGES,
    AnswerRun,
    ChunkRun,
    MethodSession,
    SessionComparison,
    StageTimes,
    endless_positions,
)
from stc_stream.evaluate.method import Method
from stc_stream.evaluate.methods import read_memory, read_method

QUESTION = "What is on the table?"
METHODS = (
    Method("dense"),
    Method("stc", CacherConfig.paper(0.25, 3), PrunerConfig.paper(tokens_per_frame=5)),
    Method("gaussian", None, PrunerConfig(strategy="gaussian", keep_ratio=0.5)),
    read_method("skip:refresh_interval=2"),
    Method("retrieval", pruner=PrunerConfig.paper(), memory=RetrievalMemory(20, 3)),
    Method("recent", memory=RecentMemory(2)),
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def case(seed: int) -> Case:
    return make_case(seed)


@pytest.fixture
def frames(generator: torch.Generator) -> Tensor:
    return steps_of_a_quarter(8, generator)


def by_hand(case: Case, method: Method) -> StreamingSession:
    return StreamingSession(
        case.model,
        case.processor,
        cacher=method.tower,
        pruner=method.pruner,
        memory=method.memory,
    )


def answer_by_hand(session: StreamingSession, question: str, limit: int) -> tuple[str, int]:
    """Return an answer, and how many tokens were chosen for it."""
    chosen = []

    def choose(logits: Tensor) -> int:
        chosen.append(int(logits.argmax()))
        return chosen[-1]

    text = session.ask(question, limit, choose=choose)
    return text, len(chosen)


def test_every_method_does_what_a_plain_session_does(seed: int, frames: Tensor) -> None:
    case, plain = make_case(seed), make_case(seed)
    before = case.model.model.vision_tower.state_dict()
    seen: dict[int, list[str]] = {}
    with SessionComparison(case.model, case.processor, METHODS, max_new_tokens=6) as comparison:
        fed = [comparison.feed(part) for part in frames.split([3, 1, 4])]
        middle = comparison.ask(QUESTION)
        comparison.feed(frames[:2])
        last = comparison.ask("Why?", lambda place, text: seen.setdefault(place, []).append(text))
        stats = [each.session.stats for each in comparison.sessions]
    for place, method in enumerate(METHODS):
        with by_hand(plain, method) as session:
            runs = []
            for part in frames.split([3, 1, 4]):
                runs.append(session.feed(part))
                own = fed[len(runs) - 1][place]
                assert own is not None
                assert (own.frames, own.tokens, own.kept) == (
                    len(part), 16 * len(part), runs[-1].kept,
                )  # fmt: skip
                assert own.stats == session.stats
            asked = middle[place]
            assert asked is not None and asked.ending == "limit"
            assert (asked.text, asked.tokens) == answer_by_hand(session, QUESTION, 6)
            session.feed(frames[:2])
            asked = last[place]
            assert asked is not None
            assert (asked.text, asked.tokens) == answer_by_hand(session, "Why?", 6)
            assert asked.retrieved == session.retrieved
            assert "".join(seen[place]) == asked.text and seen[place][0] == ""
            assert stats[place] == session.stats
    # The model itself has nothing on it, and its weights are what they were.
    assert "forward" not in vars(case.model.model.vision_tower)
    for name, weight in case.model.model.vision_tower.state_dict().items():
        assert torch.equal(weight, before[name])


def test_what_each_stage_takes(case: Case, frames: Tensor) -> None:
    with MethodSession(case.model, case.processor, METHODS[1]) as one:
        fed = one.feed(frames, [0.5 * number for number in range(8)])
        asked = one.ask(QUESTION, 3)
    assert set(fed.seconds) == {"preprocess", "tower", "prune", "prefill", "other"}
    assert set(asked.seconds) == {"first_token", "later_tokens"}
    assert all(seconds >= 0 for run in (fed, asked) for seconds in run.seconds.values())
    assert fed.seconds["tower"] > 0 and asked.seconds["first_token"] > 0


def test_the_clock_is_read_at_the_question_and_at_each_token(
    case: Case, frames: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter([1.0, 3.0, 3.5, 7.0])

    class Clock:
        def __init__(self, device: torch.device) -> None:
            pass

        def __call__(self) -> float:
            return next(readings)

    monkeypatch.setattr(answers_module, "WallClock", Clock)
    with MethodSession(case.model, case.processor, METHODS[0]) as one:
        asked = one.ask(QUESTION, 3)
    assert asked.seconds == {"first_token": 2.0, "later_tokens": 4.0}


def test_an_answer_ends_where_the_model_or_the_caller_says(case: Case, frames: Tensor) -> None:
    with MethodSession(case.model, case.processor, METHODS[0]) as one:
        one.feed(frames)
        whole = one.ask(QUESTION, 5)
        asked = iter([True, True, False])
        part = one.ask(QUESTION, 5, going=lambda: next(asked))
        first = int(one.session.logits(QUESTION).argmax())
        held = one.session.stats
        assert one.ask(QUESTION, 5).text == whole.text and one.session.stats == held
    assert (part.ending, part.tokens) == ("stopped", 2)
    assert whole.text.startswith(part.text)
    case.model.generation_config.eos_token_id = first
    with MethodSession(case.model, case.processor, METHODS[0]) as one:
        one.feed(frames)
        ended = one.ask(QUESTION, 5)
    assert (ended.text, ended.tokens, ended.ending) == ("", 0, "end")


def test_answers_that_were_stopped_begin_no_others(case: Case, frames: Tensor) -> None:
    going = [True]

    def see(place: int, piece: str) -> None:
        going[0] = False

    with SessionComparison(case.model, case.processor, METHODS[:3], max_new_tokens=4) as several:
        several.feed(frames)
        runs = several.ask(QUESTION, see, lambda: going[0])
    endings = [run and run.ending for run in runs]
    assert sorted(endings, key=str) == [None, None, "stopped"]


def test_a_full_memory_stops_its_method_alone(case: Case, frames: Tensor) -> None:
    small = Method("small", memory=FullMemory(tokens=70))
    pruned = Method("pruned", pruner=PrunerConfig.paper(tokens_per_frame=4), memory=small.memory)
    with SessionComparison(case.model, case.processor, (small, pruned)) as comparison:
        assert all(comparison.feed(frames[:3]))
        assert comparison.full == [None, None]
        dense, other = comparison.feed(frames[3:])
        assert dense is None and other is not None and other.frames == 5
        assert comparison.full[0] is not None and "and 80 more do not fit" in comparison.full[0]
        # It has not seen what the other has: it isn't asked.
        dense, other = comparison.ask(QUESTION)
        assert dense is None and other is not None
        with pytest.raises(MemoryFullError):
            comparison.feed(frames.repeat(9, 1, 1, 1))
        assert all(comparison.full)
        comparison.reset()
        assert comparison.full == [None, None] and all(comparison.feed(frames[:1]))
    with SessionComparison(case.model, case.processor, (small, small)) as alike:
        alike.feed(frames[:3])
        with pytest.raises(MemoryFullError):
            alike.feed(frames)
        # All of them are full, of the same frames: they are asked.
        assert all(alike.ask(QUESTION))


def test_a_question_without_room_is_an_answer_that_says_so(seed: int, frames: Tensor) -> None:
    case = make_case(seed, context=160)
    with MethodSession(case.model, case.processor, METHODS[0]) as one:
        one.feed(frames)
        asked = one.ask(200 * "?")
        assert (asked.text, asked.tokens, asked.ending) == ("", 0, "no_room")
        assert StageTimes.of([asked]).whole == 0
        assert one.ask("?", 2).ending == "limit"


@pytest.mark.parametrize(
    ("text", "memory", "positions"),
    [
        ("full", FullMemory(), "kept"),
        ("full:tokens=none", FullMemory(), "kept"),
        ("full:tokens=70", FullMemory(70), "kept"),
        ("recent:frames=3", RecentMemory(3), "kept"),
        ("window:window_tokens=9", WindowMemory(window_tokens=9), "contiguous"),
        ("retrieval:blocks=2", RetrievalMemory(blocks=2), "contiguous"),
    ],
)
def test_memories_by_name(text: str, memory: Any, positions: str) -> None:
    assert read_memory(text) == memory
    assert endless_positions(memory, axes=1) == positions
    assert endless_positions(memory, axes=3) == "kept"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("some", "^memory must be one of full, recent, retrieval, window, but is 'some'$"),
        ("full:tokens=x", "^memory full: tokens must be a whole number or none, but is 'x'$"),
        ("window:sinks=1", "^memory window has sink_tokens, window_tokens, but no 'sinks'$"),
        ("retrieval:blocks=0", "^memory retrieval: blocks must be at least 1, but is 0$"),
    ],
)
def test_what_is_no_memory(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_memory(text)


def test_a_warm_up_leaves_nothing(seed: int, frames: Tensor) -> None:
    found = []
    for warm in (False, True):
        case = make_case(seed)
        with SessionComparison(case.model, case.processor, METHODS, max_new_tokens=4) as each:
            if warm:
                each.warm_up(frames[4:6])
            runs = each.feed(frames)
            answers = each.ask(QUESTION)
            found.append(
                [(run.kept, run.stats, one.text) for run, one in zip(runs, answers, strict=True)]
            )
    assert found[0] == found[1]


@pytest.mark.parametrize(("interval", "chunk"), [(1, 1), (2, 1), (3, 1), (4, 1), (4, 2), (8, 3)])
def test_every_phase_of_a_cycle_meets_both_orders(
    case: Case, frames: Tensor, interval: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[list[str]] = []

    def feed(self: MethodSession, *arguments: Any) -> ChunkRun:
        turns[-1].append(self.method.name)
        return ChunkRun(1, 1, 1, {}, self.session.stats)

    monkeypatch.setattr(MethodSession, "feed", feed)
    stc = Method("stc", CacherConfig.paper(0.25, interval))
    with SessionComparison(case.model, case.processor, (METHODS[0], stc), chunk=chunk) as each:
        for _ in range(48):
            turns.append([])
            each.feed(frames[:chunk])
    cycle = -(-interval // chunk)
    for phase in range(cycle):
        first = [turn[0] for turn in turns[phase::cycle]]
        assert abs(first.count("dense") - first.count("stc")) <= 1


def test_shares_and_savings_are_of_the_sums() -> None:
    def times(**seconds: float) -> StageTimes:
        half = {stage: value / 2 for stage, value in seconds.items()}
        answer = AnswerRun("", 1, {"first_token": 1.0, "later_tokens": 1.0}, "limit")
        none: Any = None
        return StageTimes.of([*[ChunkRun(1, 1, 1, half, none)] * 2, answer])

    dense, other = times(tower=6.0, prefill=2.0), times(tower=3.0, prune=1.0, prefill=1.0)
    assert (dense.whole, other.whole) == (10.0, 7.0)
    assert dense.share("tower") == pytest.approx(0.6)
    assert sum(map(dense.share, STAGES)) == pytest.approx(1)
    # Half of the tower is three tenths of the whole.
    assert other.saved("tower", dense) == pytest.approx(0.5)
    assert other.saved_of_whole("tower", dense) == pytest.approx(0.3)
    assert other.saved("prune", dense) is None
    assert other.saved_of_whole("prune", dense) == pytest.approx(-0.1)
    whole = sum(other.saved_of_whole(stage, dense) for stage in STAGES)
    assert whole == pytest.approx(1 - other.whole / dense.whole)
    assert StageTimes.of([]).share("tower") == 0
