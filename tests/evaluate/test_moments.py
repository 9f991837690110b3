"""The order in which frames and questions come, against what each question's time says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stc_stream.evaluate.moments import Chunk, Question, moments
from stc_stream.video import Frame

SIZES = ((4, 6, 3), (2, 2, 3))


def frame(index: int, time: float, size: int = 0) -> Frame:
    return Frame(index, time, np.full(SIZES[size], index, np.uint8))


@given(
    steps=st.lists(st.sampled_from([0.25, 0.5, 1.0]), max_size=9),
    sizes=st.lists(st.integers(0, 1), min_size=9, max_size=9),
    times=st.lists(st.none() | st.sampled_from([0.0, 0.2, 0.25, 1.0, 1.6, 3.0, 99.0]), max_size=5),
    chunk=st.integers(1, 4),
)
def test_every_question_comes_behind_the_frames_up_to_its_time(
    steps: list[float], sizes: list[int], times: list[float | None], chunk: int
) -> None:
    starts = np.cumsum([0.0, *steps])[: len(steps)].tolist()
    frames = [frame(i, time, sizes[i]) for i, time in enumerate(starts)]
    questions = [Question(f"{number}?", time) for number, time in enumerate(times)]
    end = starts[-1] + 0.25 if starts else 0.0
    before: list[int] = []
    asked: dict[str, list[int]] = {}
    for moment in moments(iter(frames), questions, chunk, end):
        if isinstance(moment, Question):
            asked[moment.text] = list(before)
            continue
        assert 1 <= len(moment.frames) <= chunk
        assert moment.images.shape == (len(moment.frames), *moment.frames[0].image.shape)
        assert moment.times == [each.time for each in moment.frames]
        before += [each.index for each in moment.frames]
    assert before == list(range(len(frames)))
    for question in questions:
        if question.time is None:
            assert asked[question.text] == before
        elif question.time <= end:
            assert asked[question.text] == [i for i, t in enumerate(starts) if t <= question.time]
        else:
            assert question.text not in asked
    # Those at the end come in their own order.
    last = [question.text for question in questions if question.time is None]
    assert [text for text in asked if text in last] == last


def test_chunks_are_as_large_as_they_may_be() -> None:
    frames = [frame(i, i / 4, size=int(i > 6)) for i in range(9)]
    found = moments(frames, [Question("now", 0.6)], 3)
    sizes = [len(each.frames) if isinstance(each, Chunk) else each.text for each in found]
    assert sizes == [3, "now", 3, 1, 2]


def test_without_an_end_the_last_frame_is_shown_as_long_as_the_one_before() -> None:
    frames = [frame(i, float(i)) for i in range(3)]
    questions = [Question("in", 3.0), Question("out", 3.01)]
    found = [each.text for each in moments(frames, questions, 9) if isinstance(each, Question)]
    assert found == ["in"]


@pytest.mark.parametrize("time", [-0.1, float("nan"), float("inf")])
def test_a_time_that_is_none(time: float) -> None:
    with pytest.raises(ValueError, match="^time must be a number of seconds from 0 on, but is"):
        Question("when", time)
