"""A task through sessions: what is asked when, what is counted, what is kept, what it comes to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from session.conftest import make_case, steps_of_a_quarter

from stc_stream import CacherConfig, FullMemory, PrunerConfig, StreamingSession, attach_cacher
from stc_stream.evaluate.accuracy import (
    FailedVideo,
    Response,
    RunFolder,
    RunSettings,
    TaskRunner,
    VideoAnswers,
    score_methods,
)
from stc_stream.evaluate.accuracy.encoding import SharedEncoding
from stc_stream.evaluate.accuracy.runner import HELD_BYTES
from stc_stream.evaluate.accuracy.scores import RESAMPLED
from stc_stream.evaluate.cost import CostModel
from stc_stream.evaluate.method import Method
from stc_stream.evaluate.methods import method_names, read_memory, read_method, split_methods
from stc_stream.evaluate.tasks import Item, Task
from stc_stream.evaluate.tasks.task import means_of_means
from stc_stream.session.memory import RecentMemory, RetrievalMemory, WindowMemory
from stc_stream.session.models import read_model
from stc_stream.towers import read_tower
from stc_stream.video import Frame, VideoError

CHOICES = ("left", "right", "both")
FRAMES = 6


class Made(Task):
    """Clips that a test makes, a frame each second."""

    name = "made"
    max_new_tokens = 3

    def __init__(self, clips: dict[str, np.ndarray], items: Sequence[Item]) -> None:
        self.clips, self.items = clips, tuple(items)
        self.opened: list[str] = []

    @contextmanager
    def open(self, video: str) -> Iterator[Iterator[Frame]]:
        self.opened.append(video)
        if video not in self.clips:
            raise VideoError(f"{video} is missing")
        yield (Frame(n, float(n), image) for n, image in enumerate(self.clips[video]))

    def check_videos(self) -> None:
        pass


@pytest.fixture(scope="module")
def case():
    return make_case(torch.seed() % 2**31)


@pytest.fixture
def task(generator: torch.Generator) -> Made:
    clips = {name: steps_of_a_quarter(FRAMES, generator).numpy() for name in ("one", "two")}
    items = [
        Item("end", "one", "And at the end?", "left", CHOICES, group="late"),
        Item("early", "one", "Which?", "right", CHOICES, 1.0, "early"),
        Item("between", "one", "Which now?", "both", CHOICES, 3.5, "late"),
        Item("written", "one", "What?", "a cup", (), 3.5, "late"),
        Item("other", "two", "Which?", "left", CHOICES, 0.0, "early"),
    ]
    return Made(clips, items)


def run_all(case, task: Task, methods: Sequence[Method], chunk: int = 1) -> list[VideoAnswers]:
    with TaskRunner(case.model, case.processor, task, methods, chunk=chunk) as runner:
        names = [method.name for method in methods]
        return [answers for video in runner.videos for answers in runner.run(video, names)]


def by_hand(case, task: Made, item: Item, method: Method) -> tuple[str, tuple[float, ...]]:
    """Answer one question in a session of its own, from the frames up to its time at once."""
    end = math.inf if item.time is None else item.time
    clip = task.clips[item.video]
    frames = clip[[number for number in range(len(clip)) if number <= end]]
    parts = {"cacher": method.tower, "pruner": method.pruner, "memory": method.memory}
    with StreamingSession(case.model, case.processor, **parts) as session:
        session.feed(frames)
        if not item.choices:
            return session.ask(item.text, task.max_new_tokens), ()
        scores = session.score(item.text, item.choices)
        return item.choices[int(scores.argmax())], tuple(scores.tolist())


TEXTS = ["dense", "stc:refresh_interval=2", "skip:refresh_interval=2", "evs", "visionzip", "dtd"]


@pytest.mark.parametrize("chunk", [1, 4])
def test_each_question_is_answered_from_the_frames_before_it(case, task, chunk) -> None:
    methods = [read_method(text, {"tokens_per_frame": 6}) for text in TEXTS]
    found = run_all(case, task, methods, chunk)
    assert [(run.method, run.video) for run in found] == [
        (method.name, video) for video in ("one", "two") for method in methods
    ]
    items = {item.name: item for item in task.items}
    for run in found:
        names = [response.item for response in run.responses]
        expected = ["early", "between", "written", "end"] if run.video == "one" else ["other"]
        assert names == expected
        for response in run.responses:
            method = read_method(run.method, {"tokens_per_frame": 6})
            text, scores = by_hand(case, task, items[response.item], method)
            torch.testing.assert_close(
                torch.tensor(response.likelihoods), torch.tensor(scores), rtol=1e-3, atol=1e-3
            )
            if not scores:
                assert response.text == text
            assert response.seconds > 0


@pytest.mark.parametrize("build", ["build_llava_next_video", "build_qwen2_vl"])
def test_any_model_that_sessions_take(seed, task, build) -> None:
    """Frames of several to a temporal patch, and features of a layer before the last."""
    # Not above: transformers looks for torchvision once, before the path to it is known.
    from stc_stream.session import untrained

    other = SimpleNamespace()
    other.model, other.processor = getattr(untrained, build)(seed=seed)
    methods = [read_method(text).with_share(0.5) for text in ("dense", "uniform", "evs", "stc")]
    if "qwen" not in build:
        methods.append(read_method("merge:merged=2"))
    items = {item.name: item for item in task.items}
    by_name = {method.name: method for method in methods}
    for run in run_all(other, task, methods):
        for response in run.responses:
            _, scores = by_hand(other, task, items[response.item], by_name[run.method])
            torch.testing.assert_close(
                torch.tensor(response.likelihoods), torch.tensor(scores), rtol=1e-4, atol=1e-3
            )


def test_what_went_on_is_counted(case, task) -> None:
    methods = [read_method(text, {"tokens_per_frame": 6}) for text in ("dense", "uniform", "evs")]
    dense, uniform, evs = run_all(case, task, methods)[:3]
    assert (dense.frames, dense.tokens, dense.kept) == (FRAMES, 16 * FRAMES, 16 * FRAMES)
    assert (uniform.tokens, uniform.kept) == (16 * FRAMES, 6 * FRAMES)
    # A rule about whole clips sees two frames, then four, then all of them.
    assert (evs.frames, evs.kept) == (2 + 4 + 6, 16 + 6 * 4 + 6 * 6)
    held = [response.tokens_held for response in uniform.responses]
    assert [one - held[0] for one in held] == [0, 12, 12, 24]
    assert {"preprocess", "tower", "prune", "prefill"} <= dense.seconds.keys()


def test_dense_towers_share_their_frames_and_are_charged_for_them(case, task, monkeypatch) -> None:
    calls = []
    read = read_model(case.model)
    original = type(read).encode
    monkeypatch.setattr(
        type(read),
        "encode",
        lambda self, pixels: (calls.append(len(pixels)), original(self, pixels))[1],
    )
    methods = [read_method(text, {"tokens_per_frame": 6}) for text in ("dense", "uniform", "evs")]
    found = run_all(case, task, methods)
    # Three frames to warm up, and each clip's once.
    assert sum(calls) == 1 + 2 * FRAMES
    dense, uniform, evs = (run.seconds["tower"] for run in found[:3])
    assert uniform >= 0.5 * dense and evs >= 0.5 * dense
    with pytest.raises(ValueError, match=r"chunk must be in 1\.\.16, but is 17"):
        TaskRunner(case.model, case.processor, task, methods, chunk=17)


def test_shared_frames_are_what_the_model_gives(case, generator) -> None:
    clip = steps_of_a_quarter(5, generator)
    pixels = case.processor.pixels(clip)
    read = read_model(case.model)
    assert read_model(read) is read
    with torch.no_grad():
        expected = read.encode(pixels)
        for most in (1 << 20, 2 * expected[0].nbytes, 0):
            shared = SharedEncoding(read, most)
            for sizes in ([5], [2, 3], [1] * 5):
                found = torch.cat([shared.model.encode(part) for part in pixels.split(sizes)])
                torch.testing.assert_close(found, expected)
            # Remembering takes a little, and saves what is remembered.
            assert (shared.take_owed() < 0) if not most else True
            shared.begin()
            torch.testing.assert_close(shared.model.encode(pixels[3:]), expected[3:])


def test_the_tower_s_share_is_counted_from_what_it_recomputed(case, task) -> None:
    config = CacherConfig.paper(0.25, 3)
    found = run_all(case, task, [Method("plain", config), read_method("skip:refresh_interval=3")])
    read = read_tower(case.model.model.vision_tower)
    cost = CostModel.of(read, 64)
    selective = cost.selective_share(0.25)
    assert found[0].tower_share == pytest.approx((2 + 4 * selective) / 6)
    assert found[1].tower_share == pytest.approx(2 / 6)
    assert found[2].tower_share == pytest.approx((2 + 4 * selective) / 6)
    # The model's own tower is as it was.
    with attach_cacher(case.model.model.vision_tower, config):
        pass


def test_a_memory_that_is_full_leaves_questions_unanswered(case, task) -> None:
    small = Method("small", memory=FullMemory(tokens=16 * 3 + 20))
    (one, two) = run_all(case, task, [small])
    texts = [response.text for response in one.responses]
    assert texts[0] is not None and texts[-1] is None
    assert one.frames < FRAMES and two.responses[0].text is not None
    (score,) = score_methods(task, ["small"], [one, two], baseline="small")
    assert score.unanswered == texts.count(None)
    assert score.questions == 5


def test_a_video_that_is_missing_runs_nothing(case, task) -> None:
    del task.clips["one"]
    with TaskRunner(case.model, case.processor, task, [read_method("dense")]) as runner:
        with pytest.raises(VideoError, match="one is missing"):
            list(runner.run("one", ["dense"]))
        assert len(list(runner.run("two", ["dense"]))) == 1


def test_a_long_video_is_decoded_again_for_each_method(case, task, monkeypatch) -> None:
    monkeypatch.setattr("stc_stream.evaluate.accuracy.runner.HELD_BYTES", 3 * 32 * 32 * 3)
    methods = [read_method("dense"), read_method("uniform")]
    found = run_all(case, task, methods)
    assert task.opened.count("one") > 2
    monkeypatch.setattr("stc_stream.evaluate.accuracy.runner.HELD_BYTES", HELD_BYTES)
    for run, other in zip(found, run_all(case, task, methods), strict=True):
        for response, again in zip(run.responses, other.responses, strict=True):
            torch.testing.assert_close(
                torch.tensor(response.likelihoods), torch.tensor(again.likelihoods)
            )


def answered(method: str, video: str, right: Sequence[bool]) -> VideoAnswers:
    responses = tuple(
        Response(f"{video}/{place}", "yes" if own else "no", (), 0.5, 10)
        for place, own in enumerate(right)
    )
    return VideoAnswers(method, video, responses, 2, 8, 4, 0.5, {"tower": 0.004})


def questions(videos: int, each: int) -> list[Item]:
    return [
        Item(f"{video}/{place}", str(video), "?", "yes", group=str(place % 2))
        for video in range(videos)
        for place in range(each)
    ]


def test_scores_are_what_a_plain_statement_says(generator) -> None:
    videos, each = 12, 3
    right = torch.rand(2, videos, each, generator=generator) < 0.6
    task = Made({}, questions(videos, each))
    found = [
        answered(name, str(video), right[row, video].tolist())
        for row, name in enumerate(("dense", "other"))
        for video in range(videos)
    ]
    dense, other = score_methods(task, ["dense", "other"], found, seed=5)
    draws = np.random.default_rng(5).multinomial(videos, [1 / videos] * videos, size=RESAMPLED)
    for score, own in ((dense, right[0]), (other, right[1])):
        assert score.accuracy.value == pytest.approx(float(own.float().mean()))
        means = sorted(
            sum(times * int(own[video].sum()) for video, times in enumerate(draw)) / (videos * each)
            for draw in draws.tolist()
        )
        assert score.accuracy.low == pytest.approx(np.percentile(means, 2.5))
        assert score.accuracy.high == pytest.approx(np.percentile(means, 97.5))
        asked, share = score.groups["0"]
        assert asked == 2 * videos
        assert share == pytest.approx(float(own[:, [0, 2]].float().mean()))
        assert score.strict == score.accuracy
    apart = [
        sum(times * int(right[1, v].sum() - right[0, v].sum()) for v, times in enumerate(draw))
        / (videos * each)
        for draw in draws.tolist()
    ]
    assert other.difference.low == pytest.approx(np.percentile(apart, 2.5))
    assert other.difference.high == pytest.approx(np.percentile(apart, 97.5))
    assert (dense.difference.value, dense.difference.low, dense.difference.high) == (0, 0, 0)
    assert (other.tower_share, other.tokens_of_frame, other.tokens_per_frame) == (0.5, 4, 2)
    assert other.milliseconds == {"tower": pytest.approx(2), "answer": pytest.approx(500)}
    whole = videos * (0.004 + 0.5 * each)
    assert other.shares["tower"] == pytest.approx(videos * 0.004 / whole)
    assert sum(other.shares.values()) == pytest.approx(1)


def test_only_videos_that_all_are_through_with_are_scored() -> None:
    task = Made({}, questions(3, 2))
    found = [answered("dense", str(video), [True, False]) for video in range(3)]
    found += [answered("other", "1", [True, True])]
    dense, other = score_methods(task, ["dense", "other"], found)
    assert (dense.videos, dense.questions, dense.accuracy.value) == (1, 2, 0.5)
    assert other.difference.value == 0.5
    assert other.accuracy.low is None and other.difference.high is None
    assert score_methods(task, ["dense", "other"], found[:3]) == ()


def test_means_of_means_leave_out_what_was_not_asked() -> None:
    right, asked = np.array([[1.0, 0, 3, 0]]), np.array([[2.0, 0, 4, 1]])
    assert means_of_means(right, asked, [(0, 1), (2, 3)]) == pytest.approx([(0.5 + 0.375) / 2])
    assert means_of_means(right, asked, [(1,), (0,)]) == pytest.approx([0.5])
    assert np.isnan(means_of_means(right, asked, [(1,)])).all()


SETTINGS = RunSettings("model", "task", None, None, 1.0, None, 1, 12, None, "kept", "float32")


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", SETTINGS)
    runs = [answered("dense", "0", [True]), answered("other", "0", [False])]
    for run in runs:
        folder.add(run)
    folder.add(FailedVideo("1", "it is missing"))
    # What a process leaves that is killed while it writes.
    with (tmp_path / "run/predictions.jsonl").open("a") as lines:
        lines.write('{"method": "dense", "vid')
    again = RunFolder(tmp_path / "run", SETTINGS)
    runs.append(FailedVideo("1", "it is missing"))
    assert again.found == runs
    again.add(answered("dense", "2", [True]))
    assert RunFolder(tmp_path / "run").found == [*runs, answered("dense", "2", [True])]
    assert RunFolder(tmp_path / "run").settings == SETTINGS
    assert json.loads(again.write_scores([{"method": "x"}]).read_text()) == [{"method": "x"}]


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", SETTINGS)
    folder.add(answered("dense", "0", [True]))
    with pytest.raises(ValueError, match="holds a run with chunk 1, and not 4: choose another"):
        RunFolder(tmp_path / "run", replace(SETTINGS, chunk=4))
    with pytest.raises(ValueError, match=r"holds no run: it has no settings\.json"):
        RunFolder(tmp_path)
    file = tmp_path / "run/predictions.jsonl"
    file.write_text(file.read_text() + "{}\n")
    with pytest.raises(ValueError, match=r"predictions\.jsonl is broken in line 2: remove"):
        RunFolder(tmp_path / "run")
    (tmp_path / "run/settings.json").write_text("[]")
    with pytest.raises(ValueError, match=r"settings\.json is no settings file of a run"):
        RunFolder(tmp_path / "run")


def test_lists_of_methods_keep_their_settings() -> None:
    text = "stc:update_ratio=0.1, refresh_interval=2,skip, merge:merged=3,,dense"
    expected = ["stc:update_ratio=0.1,refresh_interval=2", "skip", "merge:merged=3", "dense"]
    assert split_methods(text) == expected
    assert split_methods(" all") == list(method_names())
    assert read_method(expected[0]).tower == CacherConfig(update_ratio=0.1, refresh_interval=2)
    assert read_method("stc", {"tokens_per_frame": 5}).pruner == PrunerConfig.paper(5)


def test_the_default_share_is_another_where_nothing_is_said() -> None:
    for name in ("stc", "uniform", "stc_released", "streamingtom"):
        assert read_method(name).with_share(1 / 3).pruner.kept_tokens(36) == 12
        said = read_method(f"{name}:tokens_per_frame=4")
        assert said.with_share(1 / 3) is said
    for name in ("dense", "skip", "dtd"):
        assert read_method(name).with_share(1 / 3).pruner == read_method(name).pruner


def test_a_memory_is_read_by_the_name_of_its_method() -> None:
    assert read_memory("recent:frames=2") == RecentMemory(2)
    assert read_memory("window:sink_tokens=4") == WindowMemory(4)
    assert read_memory("retrieval") == RetrievalMemory()
    with pytest.raises(
        ValueError, match="memory must be one of full, recent, retrieval, window, but is"
    ):
        read_memory("stc")
    with pytest.raises(ValueError, match="memory recent: frames must be at least 1, but is 0"):
        read_memory("recent:frames=0")
