"""`stc eval`: what it prints and writes, how it is stopped and goes on, what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stc_stream.evaluate.accuracy import TaskRunner
from stc_stream.evaluate.methods import method_names

from .conftest import Outcome

Stc = Callable[..., Outcome]
METHODS = ["dense", "stc", "stc-cacher:refresh_on_change=none", "skip:refresh_interval=2"]


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """Answer Ctrl-C as a terminal's command does, whoever started the tests deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def questions(video: Path, tmp_path: Path) -> Path:
    """Questions about two copies of a video of two seconds."""
    shutil.copy(video, tmp_path / "again.mp4")
    asked = [
        {
            "video": name,
            "question": f"Which {n}?",
            "choices": ["a", "b", "c"],
            "answer": "b",
            **more,
        }
        for name in (video.name, "again.mp4")
        for n, more in enumerate(({}, {"time": 0.6, "group": "early"}))
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, asked)))
    return path


@pytest.fixture
def evaluate(stc: Stc, tiny_llm: Path, questions: Path) -> Stc:
    """Run `stc eval` on the questions and the model."""

    def run(*arguments: object) -> Outcome:
        return stc("eval", "--model", tiny_llm, "--task", questions, "--fps", 4, *arguments)

    return run


def one_line(outcome: Outcome) -> str:
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome
    return outcome.err


def test_a_row_a_method(evaluate: Stc, tmp_path: Path) -> None:
    document = tmp_path / "rows.json"
    outcome = evaluate("--method", ",".join(METHODS[1:]), "--json", document)
    assert (outcome.code, outcome.err) == (0, "")
    assert "mine: 4 questions about 2 videos" in outcome.out
    rows = json.loads(document.read_text())
    assert [row["method"] for row in rows] == METHODS
    for row in rows:
        assert (row["questions"], row["videos"], row["complete"]) == (4, 2, True)
        assert 0 <= row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] <= 1
        assert row["groups"]["early"]["questions"] == 2
        assert row["settings"]["tokens_per_frame"] is None
        assert f"{100 * row['accuracy']:.1f}" in outcome.out
    dense, stc, cacher, skip = rows
    # A third of the tokens, of 16.
    assert [row["tokens_per_frame"] for row in rows] == [16, 5, 16, 16]
    assert (dense["tower_share"], skip["tower_share"]) == (1, 0.5)
    # Every frame of the video is another scene, which the default notices.
    assert stc["tower_share"] == 1 > cacher["tower_share"] > 0.25
    assert cacher["difference"] == pytest.approx(cacher["accuracy"] - dense["accuracy"])


def test_a_run_is_kept_goes_on_and_is_scored_again(
    evaluate: Stc, stc: Stc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, document = tmp_path / "run", tmp_path / "rows.json"
    method = ("--method", "stc", "--run", folder)
    original, ran = TaskRunner.run, []

    def stopped(self, video, methods):
        for answers in original(self, video, methods):
            ran.append((answers.video, answers.method))
            yield answers
            if len(ran) == 3:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TaskRunner, "run", stopped)
    outcome = evaluate(*method, "--json", document)
    assert outcome.code == 0
    assert outcome.err.startswith("warning: stopped; this is of the videos that all methods are")
    assert [row["videos"] for row in json.loads(document.read_text())] == [1, 1]
    assert not json.loads(document.read_text())[0]["complete"]
    outcome = evaluate(*method)
    assert (outcome.code, outcome.err) == (0, "")
    # What was answered is not asked again.
    assert len(ran) == len(set(ran)) == 4
    scores = json.loads((folder / "scores.json").read_text())
    assert [row["videos"] for row in scores] == [2, 2]
    # Another method joins the same run, and only it runs.
    outcome = evaluate("--method", "stc,skip", "--run", folder)
    assert ran[4:] == [("grey.mp4", "skip"), ("again.mp4", "skip")]
    (folder / "scores.json").unlink()
    again = stc("eval", "--rescore", folder, "--json", document)
    assert (again.code, again.err) == (0, "")
    assert len(ran) == 6
    rows = json.loads(document.read_text())
    assert [row["method"] for row in rows] == ["dense", "stc", "skip"]
    assert rows[1]["accuracy"] == scores[1]["accuracy"]
    assert json.loads((folder / "scores.json").read_text()) == rows
    assert "chunk 1, and not 2: choose another" in one_line(
        evaluate("--method", "stc", "--run", folder, "--chunk", 2)
    )


def test_videos_that_are_missing_or_damaged_are_counted(
    evaluate: Stc, stc: Stc, questions: Path, tmp_path: Path
) -> None:
    document = tmp_path / "rows.json"
    more = [
        {"video": "nowhere.mp4", "question": "?", "answer": "x"},
        {"video": "broken.mp4", "question": "?", "answer": "x"},
        {"video": "cut.mp4", "question": "?", "answer": "x"},
    ]
    questions.write_text(questions.read_text() + "\n" + "\n".join(map(json.dumps, more)))
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    whole = (tmp_path / "again.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 3 // 4])
    folder = tmp_path / "run"
    run = ("--method", "skip", "--run", folder)
    outcome = evaluate(*run, "--json", document)
    assert outcome.code == 0
    assert outcome.err.count("\n") == 1
    assert "3 questions about 3 videos were not asked and are not counted" in outcome.err
    assert "nowhere.mp4 is missing" in outcome.err
    (dense, _) = json.loads(document.read_text())
    assert (dense["questions"], dense["videos_failed"], dense["questions_failed"]) == (4, 3, 3)
    again = stc("eval", "--rescore", folder)
    assert again.err == outcome.err
    # What is there by now is asked about when the run goes on.
    shutil.copy(tmp_path / "again.mp4", tmp_path / "nowhere.mp4")
    assert "2 questions about 2 videos were not asked" in evaluate(*run).err
    for name in ("grey.mp4", "again.mp4", "cut.mp4", "nowhere.mp4"):
        (tmp_path / name).unlink()
    assert "no video could be read: " in one_line(evaluate("--method", "skip"))
    (tmp_path / "broken.mp4").unlink()
    assert "none of the 5 videos of mine is there: put them into" in one_line(evaluate())


def test_our_own_task_needs_no_files(stc: Stc, tiny_llm: Path) -> None:
    task = ("--task", "small:clips=3", "--limit", 2, "--chunk", 4)
    methods = "uniform,visionzip:tokens_per_frame=4,recent:frames=2"
    more = ("--memory", "window:window_tokens=100", "--positions", "contiguous")
    outcome = stc("eval", "--model", tiny_llm, *task, "--method", methods, *more)
    assert (outcome.code, outcome.err) == (0, "")
    assert "questions about 2 videos" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--method", "tome"),
            f"--method must be one of {', '.join(method_names())}, but is 'tome'",
        ),
        (("--method", ","), "--method names no method"),
        (("--method", "stc:x=1"), "--method stc has update_ratio"),
        (
            ("--tokens-per-frame", 17),
            "--tokens-per-frame must be at most 16, the tokens of a frame",
        ),
        (("--task", "nothing"), "task must be one of egoschema"),
        (("--task", "ovo_bench", "--data", "here"), "needs here/ovo_bench_new.json, which is not"),
        (("--rescore", "here"), "--model is not for --rescore, whose folder says it"),
    ],
)
def test_what_is_wrong_is_one_line(evaluate: Stc, arguments: tuple, words: str) -> None:
    assert words in one_line(evaluate(*arguments))


def test_a_model_without_a_video_path_is_one_line(
    stc: Stc, tiny_model: Path, questions: Path
) -> None:
    outcome = stc("eval", "--task", questions, "--model", tiny_model)
    assert "cannot be asked about a video: give a video LLM of these families" in one_line(outcome)


def test_the_small_trained_model_is_asked_by_default(stc: Stc, tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="photographs come with scikit-image")
    document = tmp_path / "rows.json"
    task = "small:clips=8,split=validation"
    assert stc("eval", "--task", task, "--method", "stc-cacher", "--json", document).code == 0
    dense, cacher = json.loads(document.read_text())
    # A blind model has a quarter.
    assert dense["accuracy"] > 0.8
    assert cacher["accuracy"] > 0.8


def test_a_broken_file_or_answer_is_one_line(evaluate: Stc, questions: Path) -> None:
    lines = [json.dumps({"video": "a", "question": "?", "answer": "b"})] * 8
    lines[6] = lines[6][:-1]
    questions.write_text("\n".join(lines))
    assert "mine.jsonl is broken in line 7 (" in one_line(evaluate())
    entry = {"video": "a", "question": "?", "choices": ["x", "y"], "answer": "C"}
    questions.write_text(json.dumps([entry]))
    assert "answer must be one of A, B, but is 'C'" in one_line(evaluate())


def test_a_folder_without_a_run_is_one_line(stc: Stc, tmp_path: Path) -> None:
    assert "holds no run: it has no settings.json" in one_line(stc("eval", "--rescore", tmp_path))
    (tmp_path / "file").write_text("")
    outcome = stc("eval", "--rescore", tmp_path / "file")
    assert "holds no run" in one_line(outcome)
