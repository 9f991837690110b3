"""A source that is faster than its reader: what waits, what is skipped, and who counts."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stc_stream.evaluate.answers import SessionComparison
from stc_stream.report.document import stream_schema
from stc_stream.video import Frame, LiveCounts, LiveQueue, VideoError, decoder, open_video
from stc_stream.video.frames import Opened

from .conftest import Outcome

Stc = Callable[..., Outcome]


def frame(number: int) -> Frame:
    return Frame(number, number / 10, np.full((12, 16, 3), 20 * number % 256, np.uint8))


class Source(Iterator[Frame]):
    """Frames that come when they are told to."""

    def __init__(self) -> None:
        self.allowed = threading.Semaphore(0)
        self.asked = threading.Semaphore(0)
        self.number = 0
        self.failure: Exception | None = None

    def __next__(self) -> Frame:
        self.asked.release()
        self.allowed.acquire()
        if self.failure is not None:
            raise self.failure
        self.number += 1
        return frame(self.number - 1)

    def give(self, count: int) -> None:
        """Let so many frames come, and wait until they have."""
        for _ in range(count):
            self.asked.acquire()
            self.allowed.release()
        # Asked for another one: the last was taken in.
        self.asked.acquire()
        self.asked.release()


@given(
    room=st.integers(1, 4),
    turns=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), max_size=6),
)
def test_the_oldest_that_wait_are_skipped(room: int, turns: list[tuple[int, int]]) -> None:
    """Frames come and are taken in turns: against a deque that forgets at its other end."""
    source, plain = Source(), deque(maxlen=room)
    queue = LiveQueue(source, room)
    first = threading.Thread(target=lambda: source.give(1))
    first.start()
    assert next(queue).index == 0
    first.join()
    came, skipped, most = 1, 0, 1
    for coming, taken in turns:
        source.give(coming)
        for _ in range(coming):
            skipped += len(plain) == room
            plain.append(came)
            came += 1
            most = max(most, len(plain))
        for _ in range(min(taken, len(plain))):
            assert next(queue).index == plain.popleft()
    assert queue.counts == LiveCounts(room, came, skipped, most)
    source.failure = VideoError("it went away")
    source.allowed.release()
    while plain:
        assert next(queue).index == plain.popleft()
    with pytest.raises(VideoError, match="it went away"):
        next(queue)
    assert next(queue, None) is None
    assert queue.close(1)


def test_a_source_that_ends_ends_the_queue() -> None:
    queue = LiveQueue(iter([frame(0), frame(1)]), 8)
    assert [each.index for each in queue] == [0, 1]
    assert next(queue, None) is None


def test_closing_stops_the_reading() -> None:
    source = Source()
    queue = LiveQueue(source, 2)
    assert queue.close(1)
    assert next(queue, None) is None
    queue = LiveQueue(source, 2)
    threading.Thread(target=lambda: source.give(1)).start()
    next(queue)
    # The source waits for a frame: it is not free before that one came.
    assert not queue.close(0.01)
    source.allowed.release()
    assert queue.close(10)


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """An rtsp source of whatever is put into the list: frames, or what to call before the next."""
    script: list[object] = []

    def frames() -> Iterator[Frame]:
        for each in script:
            if isinstance(each, Frame):
                yield each
            else:
                each()

    def open_url(url: str, timeout: float, warn: object) -> Opened:
        return Opened(url, frames(), lambda: None, None, 10.0, live=True)

    monkeypatch.setattr(decoder, "open_url", open_url)
    return script


def test_a_live_source_says_so_and_has_no_end(door: list[object]) -> None:
    door += [frame(number) for number in range(9)]
    with open_video("rtsp://door/1", waiting=16, fps=5, frames=3) as stream:
        assert stream.live and stream.end is None and stream.total == 3
        # Taken frames are counted, and the clock is the source's own.
        assert [each.index for each in stream] == [0, 2, 4]
        assert stream.queue is not None
    with open_video("rtsp://door/1") as stream:
        assert stream.queue is None
    with pytest.raises(ValueError, match="^waiting must be at least 1, but is 0"):
        open_video("rtsp://door/1", waiting=0)


def test_a_file_has_no_queue(video: Path) -> None:
    with open_video(video, waiting=1) as stream:
        assert stream.queue is None
        assert len(list(stream)) == 8


@pytest.mark.parametrize(
    ("behind", "room", "indices"),
    [("skip", 1, [0, 5, 6]), ("queue", 32, [0, 1, 2]), ("queue:frames=2", 2, [0, 4, 5])],
)
def test_frames_that_come_while_the_model_works(
    stc: Stc, tiny_llm: Path, tmp_path: Path, door: list[object], monkeypatch: pytest.MonkeyPatch,
    behind: str, room: int, indices: list[int],
) -> None:  # fmt: skip
    """Five frames come during the warm-up; the next ones when it is the model that waits."""
    working, came, going_on = threading.Event(), threading.Event(), threading.Event()
    door += [frame(0), working.wait, *map(frame, range(1, 6)), came.set, going_on.wait]
    door += map(frame, range(6, 9))
    warm_up = SessionComparison.warm_up

    def warm(self: SessionComparison, *arguments: object) -> None:
        warm_up(self, *arguments)
        working.set()
        assert came.wait(30)

    feed = SessionComparison.feed

    def fed(self: SessionComparison, images: np.ndarray, *arguments: object) -> object:
        if images[0, 0, 0, 0] == 20 * indices[1]:
            going_on.set()
        return feed(self, images, *arguments)

    monkeypatch.setattr(SessionComparison, "warm_up", warm)
    monkeypatch.setattr(SessionComparison, "feed", fed)
    document = tmp_path / "numbers.json"
    options = ("--max-new-tokens", 2, "--frames", 3, "--report", tmp_path, "--json", document)
    outcome = stc(
        *("stream", "rtsp://door/1", "--model", tiny_llm, "--ask", "What?"),
        *("--when-behind", behind, *options),
    )
    assert (outcome.code, outcome.err) == (0, "")
    numbers = json.loads(document.read_text())
    jsonschema.validate(numbers, stream_schema())
    live = numbers["session"]["live"]
    found = [index for chunk in numbers["session"]["chunks"] for index in chunk["indices"]]
    assert found[:2] == indices[:2] and len(found) == 3
    assert live["room"] == room and live["came"] >= 6
    # Those that did not come to the model, and don't wait, were skipped.
    assert live["skipped"] >= max(5 - room, 0) and live["most_waiting"] <= room
    words = f"live source: {live['skipped']} of {live['came']} frames that came were skipped"
    assert words in outcome.out
    assert words in (tmp_path / "index.html").read_text()


def test_a_question_at_the_end_of_what_has_none(stc: Stc, door: list[object]) -> None:
    outcome = stc("stream", "rtsp://door/1", "--ask", "What?")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "--ask 'What?' is asked at the end, which rtsp://door/1 does not have" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("VIDEO", "--when-behind", "queue"), "--when-behind is for questions: give --ask"),
        (("VIDEO", "--ask", "What?", "--when-behind", "skip"), "is for a live source, which grey"),
        (("VIDEO", "--ask", "What?", "--when-behind", "drop"), "it must be skip, queue or"),
        (("VIDEO", "--ask", "What?", "--when-behind", "queue:frames=0"), "of at least 1, but is"),
        (("VIDEO", "--ask", "What?", "--when-behind", "queue:9"), "it must be skip, queue or"),
    ],
)  # fmt: skip
def test_bad_input(stc: Stc, video: Path, arguments: tuple[str, ...], words: str) -> None:
    outcome = stc("stream", *[str(video) if each == "VIDEO" else each for each in arguments])
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert words in outcome.err
