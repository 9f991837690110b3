"""Whatever the chunks, the questions between them, the resets and the neighbours: the same."""

from __future__ import annotations

import threading

import pytest
import torch

pytest.importorskip("hypothesis", reason="hypothesis is not installed here")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from session.conftest import QUESTION, steps_of_a_quarter

from stc_stream import (
    CacherConfig,
    MemoryFullError,
    PrunerConfig,
    RecentMemory,
    RetrievalMemory,
    StreamingSession,
    WindowMemory,
)
from stc_stream.session.memory.layer import PreallocatedLayer

FRAMES = 7
examples = settings(
    max_examples=settings.default.max_examples // 2,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
COMPRESSED = {
    "cacher": CacherConfig.paper(update_ratio=0.25, refresh_interval=3),
    "pruner": PrunerConfig.paper(6),
}
SETTINGS = [
    {},
    COMPRESSED,
    {**COMPRESSED, "positions": "contiguous"},
    {"pruner": PrunerConfig.released(6)},
    {"memory": RecentMemory(3)},
    {**COMPRESSED, "memory": RecentMemory(4), "positions": "contiguous"},
    {"memory": WindowMemory(4, 40)},
    {**COMPRESSED, "memory": WindowMemory(10, 20), "positions": "contiguous"},
    {"memory": RetrievalMemory(40, 20)},
    {**COMPRESSED, "memory": RetrievalMemory(20, 50), "positions": "contiguous"},
]


def is_for(case, settings):
    """Say whether a memory is for the model: keys on several axes are not turned, a frame fits."""
    memory, frame = settings.get("memory"), torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    window = memory.window_tokens if isinstance(memory, WindowMemory) else 40
    moves = isinstance(memory, WindowMemory) and settings.get("positions") == "contiguous"
    if case.deep > 1 and (moves or isinstance(memory, RetrievalMemory)):
        return False
    return window >= case.block(frame) - case.tokens(frame) + 6


MEMORIES = [None, RecentMemory(2), WindowMemory(8, 14), RetrievalMemory(14, 20)]
BESIDE = [{**COMPRESSED, "memory": memory} for memory in MEMORIES]
actions = st.lists(
    st.one_of(
        st.integers(1, 4),
        st.sampled_from(["ask", "half an answer", "score", "reset", "fork"]),
    ),
    max_size=8,
)


def outcome(case, clip, **settings):
    """Return the logits after frames that are fed one by one to a session that is never asked."""
    with StreamingSession(case.model, case.processor, **settings) as session:
        for frame in clip:
            session.feed(frame[None])
        return session.logits(QUESTION)


@examples
@given(steps=actions, data=st.data())
def test_chunks_questions_and_resets_change_nothing(case, generator, steps, data):
    which = data.draw(st.sampled_from([own for own in SETTINGS if is_for(case, own)]))
    clip = steps_of_a_quarter(4 * len(steps), generator)
    shown: list[torch.Tensor] = []
    open_answers = []
    with StreamingSession(case.model, case.processor, **which) as session:
        given = 0
        for step in steps:
            if isinstance(step, int):
                chunk = clip[given : given + step]
                session.feed(chunk)
                shown += chunk
                given += step
            elif step == "ask":
                session.ask("What now?", 3)
            elif step == "half an answer":
                open_answers.append(session.ask("And?", 9, stream=True, choose=lambda logits: 5))
                next(open_answers[-1])
            elif step == "score":
                session.score("Which?", ["one", "two"])
            elif step == "fork":
                with session.fork() as other:
                    other.feed(clip[:1])
            else:
                session.reset()
                shown.clear()
        found = session.logits(QUESTION)
        assert session.stats.frames == len(shown)
    expected = outcome(case, shown, **which)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@examples
@given(
    turns=st.lists(st.integers(0, 1), min_size=2 * FRAMES, max_size=2 * FRAMES),
    data=st.data(),
)
def test_two_sessions_interleaved_equal_two_alone(case, generator, turns, data):
    clips = [steps_of_a_quarter(FRAMES, generator) for _ in range(2)]
    known = [own for own in BESIDE if is_for(case, own)]
    settings = data.draw(st.lists(st.sampled_from(known), min_size=2, max_size=2))
    sessions = [StreamingSession(case.model, case.processor, **own) for own in settings]
    given = [0, 0]
    for turn in turns:
        if given[turn] < FRAMES:
            sessions[turn].feed(clips[turn][given[turn] : given[turn] + 1])
            given[turn] += 1
            sessions[1 - turn].logits("And?")
    for number, session in enumerate(sessions):
        expected = outcome(case, clips[number][: given[number]], **settings[number])
        torch.testing.assert_close(session.logits(QUESTION), expected, atol=1e-4, rtol=0)
        session.close()


def test_sessions_in_threads_equal_sessions_alone(case, generator):
    settings = [own for own in BESIDE if is_for(case, own)]
    settings += [{}, {**COMPRESSED, "cacher": None}]
    clips = [steps_of_a_quarter(6, generator) for _ in settings]
    expected = [outcome(case, clip, **own) for clip, own in zip(clips, settings, strict=True)]
    found: list[torch.Tensor | None] = [None] * len(settings)
    start = threading.Barrier(len(settings))

    def run(number: int) -> None:
        with StreamingSession(case.model, case.processor, **settings[number]) as session:
            start.wait()
            for first in range(0, 6, 2):
                session.feed(clips[number][first : first + 2])
                session.ask("What?", 3)
            found[number] = session.logits(QUESTION)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(settings))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, alone in zip(found, expected, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, alone, atol=1e-4, rtol=0)


def test_threads_that_share_a_session_take_turns(case, generator):
    clip = steps_of_a_quarter(12, generator)
    answers: list[str] = []
    with StreamingSession(case.model, case.processor, **COMPRESSED) as session:
        session.feed(clip[:1])
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                answers.append(session.ask("What?", 4, choose=lambda logits: 5))

        thread = threading.Thread(target=ask)
        thread.start()
        for frame in clip[1:]:
            session.feed(frame[None])
        done.set()
        thread.join()
        found = session.logits(QUESTION)
    assert answers
    torch.testing.assert_close(found, outcome(case, clip, **COMPRESSED), atol=1e-4, rtol=0)


@examples
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from([0, 0, 1, 2, 3, 4, 5]),
            st.sampled_from(["add", "add", "crop", "fork", "borrow", "drop"]),
            st.integers(1, 4),
        ),
        max_size=30,
    ),
    capacity=st.integers(12, 40),
)
def test_layers_and_their_forks_hold_what_lists_of_rows_would(steps, capacity, generator):
    """Any interleaving of writers on shared rows, against a plain list of rows for each."""
    stream = PreallocatedLayer(capacity)
    layers: list[tuple[PreallocatedLayer, list[torch.Tensor]]] = [(stream, [])]
    for place, action, many in steps:
        place %= len(layers)
        layer, rows = layers[place]
        if action == "add" and not (place == 0 and len(rows) + many > capacity):
            new = torch.randn(1, 2, many, 3, generator=generator)
            keys, values = layer.update(new, -new)
            rows.extend(new.unbind(2))
            assert torch.equal(keys, torch.stack(rows, 2))
            assert torch.equal(values, -torch.stack(rows, 2))
        elif action == "crop" and place and rows:
            layer.crop(-min(many, len(rows)))
            del rows[len(rows) - min(many, len(rows)) :]
        elif action in ("fork", "borrow") and len(layers) < 6:
            layers.append((layer.fork(may_borrow=action == "borrow"), [*rows]))
        elif action == "drop" and place:
            del layers[place]
        for other, expected in layers:
            assert other.get_seq_length() == len(expected)
            if expected and other.keys is not None:
                assert torch.equal(other.keys, torch.stack(expected, 2))
    for other, expected in layers:
        if len(expected) > capacity:
            with pytest.raises(MemoryFullError, match=f"of {capacity} tokens"):
                other.own()
            other.reorder_cache(torch.tensor([0]))
        else:
            other.own()
        if expected:
            assert torch.equal(other.values, -torch.stack(expected, 2))
