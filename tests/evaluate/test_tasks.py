"""Tasks: annotation files as published, what counts as right, and what is refused.

The fixtures are a few made-up entries of the form of each benchmark's file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stc_stream.evaluate.scenes import ANSWERS, make_clip
from stc_stream.evaluate.tasks import Item, Task, TaskError, read_task, task_names

# https://github.com/JoeLeelyf/OVO-Bench, data/ovo_bench_new.json
OVO = [
    {
        "id": 7, "task": "EPM", "video": "Ego4D/a.mp4", "realtime": 31.5,
        "question": "Where was it?", "answer": "On a chair",
        "options": ["In a box", "On a chair", "Nowhere"], "gt": 1,
    },
    {
        "id": 8, "task": "OCR", "video": "b.mp4", "realtime": 4, "question": "What is written?",
        "answer": "Exit", "options": ["Exit", "Enter"], "gt": 0,
    },
    {
        "id": 9, "task": "REC", "video": "c.mp4", "activity": "jump",
        "test_info": [{"realtime": 3, "count": 0}, {"realtime": 9, "count": 12}],
    },
    {
        "id": 10, "task": "SSR", "video": "d.mp4",
        "test_info": [{"realtime": 2, "step": "Cut the paper", "type": 1}],
    },
    {
        "id": 11, "task": "CRR", "video": "e.mp4", "question": "What did she drop?",
        "answer": "A cup", "ask_time": 1, "clue_time": 5, "test_info": [{"realtime": 2, "type": 0}],
    },
]  # fmt: skip

# https://huggingface.co/datasets/mjuicem/StreamingBench, questions_real.json
STREAMING = [
    {
        "time": "[0:00:00 - 0:03:20]", "video_path": "./videos/sample_1/video.mp4",
        "questions": [
            {
                "task_type": "Object Recognition", "question": "What is it?",
                "time_stamp": "00:01:05", "answer": "B",
                "options": ["A. Cup", "B. Hat", "C. Box", "D. Pen"],
                "required_ability": "working memory",
            },
            {
                "task_type": "Counting", "question": "How many?", "time_stamp": "00:02:00",
                "answer": "D", "options": ["1", "2", "3", "4"], "required_ability": "",
            },
        ],
    }
]  # fmt: skip

# https://huggingface.co/datasets/lmms-lab/Video-MME, a row; and its results' form
VIDEO_MME = [
    {
        "video_id": "001", "duration": "short", "domain": "Knowledge", "videoID": "fFjv93ACGo8",
        "question_id": "001-1", "task_type": "Counting Problem", "question": "How many?",
        "options": ["A. 1.", "B. 2.", "C. 3.", "D. 4."], "answer": "C",
    },
]  # fmt: skip
VIDEO_MME_NESTED = [
    {"video_id": "001", "duration": "long", "questions": [{**VIDEO_MME[0], "question_id": "001-2"}]}
]

# https://huggingface.co/datasets/MLVU/MVLU, json/1_plotQA.json
MLVU = [
    {
        "video": "movie101_66.mp4", "duration": 246, "question": "What colour is it?",
        "candidates": ["Yellow", "Red", "Green", "Blue"], "answer": "Red",
        "question_type": "plotQA",
    },
    {
        "video": "n.mp4", "duration": 30, "question": "Where?", "candidates": ["Here", "There"],
        "answer": "Here", "question_type": "findNeedle",
    },
]  # fmt: skip

# https://github.com/egoschema/EgoSchema, questions.json and subset_answers.json
EGOSCHEMA = [
    {
        "q_uid": uid, "google_drive_id": "x", "question": "What is C doing?",
        **{f"option {number}": f"C does {number}." for number in range(5)},
    }
    for uid in ("0074f737", "00aa7247")
]  # fmt: skip

# https://github.com/Becomebright/ReKV, data/*/…: conversations
REKV = [
    {
        "video_id": "v1", "video_path": "data/mlvu/videos/v1.mp4", "duration": 100.0,
        "conversations": [
            {"question": "Which?", "choices": ["red", "blue"], "answer": "blue"},
            {"question": "How many?", "choices": ["1", "2", "3"], "answer": "A"},
        ],
    }
]  # fmt: skip

PLAIN = [
    {"video": "a.mp4", "question": "Which?", "choices": ["left", "right"], "answer": "right"},
    {"video": "a.mp4", "question": "Which?", "choices": ["up", "down"], "answer": "A", "time": 2.5},
    {"video": "b.mp4", "question": "What?", "answer": "A cup.", "group": "what", "id": "cup"},
]


def written(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def items_of(task: Task) -> list[tuple]:
    return [(item.name, item.video, item.answer, item.time, item.group) for item in task.items]


def test_ovo_bench_as_published(tmp_path: Path) -> None:
    written(tmp_path / "ovo_bench_new.json", OVO)
    task = read_task("ovo_bench", tmp_path)
    assert items_of(task) == [
        ("7", "7.mp4", "B", None, "EPM"),
        ("8", "8.mp4", "A", None, "OCR"),
        ("9_0", "9_0.mp4", "0", None, "REC"),
        ("9_1", "9_1.mp4", "12", None, "REC"),
        ("10_0", "10_0.mp4", "Yes", None, "SSR"),
        ("11_0", "11_0.mp4", "No", None, "CRR"),
    ]
    assert items_of(read_task(str(tmp_path / "ovo_bench_new.json"))) == items_of(task)
    assert task.folder == tmp_path / "chunked_videos"
    texts = [item.text for item in task.items]
    assert "Options:\nA. In a box; B. On a chair; C. Nowhere;\nRespond only" in texts[0]
    assert "How many times did they jump?" in texts[2]
    assert "\nCut the paper\n" in texts[4]
    assert "What did she drop?" in texts[5]
    # The total: (1/1 + (1/2 of one task)) over three categories, each the mean of its tasks.
    places = {group: place for place, group in enumerate(task.groups)}
    asked = np.array([1.0, 1, 2, 1, 1])
    right = np.zeros(5)
    for group, count in (("EPM", 1), ("REC", 1), ("SSR", 1)):
        right[places[group]] = count
    assert task.mean(right, asked) == pytest.approx((1 + 0 + (1 / 2 + 1 + 0) / 3) / 3)
    without = asked.copy()
    without[places["OCR"]] = 0
    assert task.mean(right, without) == pytest.approx((1 + (1 / 2 + 1 + 0) / 3) / 2)


@pytest.mark.parametrize(
    ("group", "answer", "response", "right", "strictly"),
    [
        ("EPM", "A", "A", True, True),
        ("EPM", "A", "(A).", True, True),
        ("EPM", "A", "A. In a box", True, True),
        ("EPM", "A", "Answer: B", True, False),
        ("EPM", "B", "Answer: B", True, False),
        ("EPM", "B", "It is a box", False, False),
        ("EPM", "C", "", False, False),
        ("REC", "12", "1 and 2", True, False),
        ("REC", "12", "12.", True, True),
        ("REC", "2", "two", False, False),
        ("SSR", "Yes", "Yes", True, True),
        ("SSR", "Yes", "Y", True, False),
        ("CRR", "No", "No, or Yes", True, False),
        ("CRR", "No", "no.", False, True),
    ],
)
def test_ovo_bench_is_scored_as_published_and_strictly(
    tmp_path, group, answer, response, right, strictly
) -> None:
    task = read_task(str(written(tmp_path / "ovo.json", OVO)))
    item = Item("1", "v", "?", answer, group=group)
    assert (task.right(item, response), task.strictly_right(item, response)) == (right, strictly)


def test_streaming_bench_as_published(tmp_path: Path) -> None:
    written(tmp_path / "questions_real.json", STREAMING)
    task = read_task("streaming-bench", tmp_path)
    video = "./videos/sample_1/video.mp4"
    assert items_of(task) == [
        ("1/1", video, "B", 65.0, "Object Recognition"),
        ("1/2", video, "D", 120.0, "Counting"),
    ]
    assert task.items[1].text.endswith("\nA. 1\nB. 2\nC. 3\nD. 4\n\nThe best option is:")
    assert "Question: How many?" in task.items[1].text
    for response, right, strictly in (("D", 1, 1), ("Dog", 1, 0), ("(D)", 0, 1), ("It is D", 0, 0)):
        assert task.right(task.items[1], response) == right
        assert task.strictly_right(task.items[1], response) == strictly


def test_earlier_gold_answers_are_part_of_sequential_questions(tmp_path: Path) -> None:
    task = read_task(str(written(tmp_path / "questions_sqa.json", [STREAMING])))
    first, second = task.items
    assert "contextual information" not in first.text
    assert (
        "At timestamp 00:01:05, the following question and answer occurred: Question: What is it?; "
        "Options: A. Cup, B. Hat, C. Box, D. Pen; Answer: B; " in second.text
    )
    for part, words in (("omni", "needs the sound"), ("proactive", "is polled each second")):
        with pytest.raises(TaskError, match=words):
            read_task(str(written(tmp_path / f"questions_{part}.json", STREAMING)))


def test_video_mme_as_published(tmp_path: Path) -> None:
    task = read_task(str(written(tmp_path / "videomme.json", VIDEO_MME)))
    assert items_of(task) == [("001-1", "fFjv93ACGo8.mp4", "C", None, "short")]
    assert task.items[0].text.endswith("How many?\nA. 1.\nB. 2.\nC. 3.\nD. 4.\nThe best answer is:")
    nested = read_task(str(written(tmp_path / "nested.json", VIDEO_MME_NESTED)))
    assert items_of(nested) == [("001-2", "001.mp4", "C", None, "long")]
    for response, right, strictly in (
        ("C", 1, 1), ("The best answer is C", 1, 0), ("it may be C or D", 1, 0), ("A or C", 0, 0),
        ("Best Choice", 0, 0), ("c", 0, 0),
    ):  # fmt: skip
        assert task.right(task.items[0], response) == right
        assert task.strictly_right(task.items[0], response) == strictly


def test_mlvu_as_published(tmp_path: Path) -> None:
    folder = tmp_path / "json"
    folder.mkdir()
    for name, entry in zip(("1_plotQA", "2_needle"), MLVU, strict=True):
        written(folder / f"{name}.json", [entry])
    task = read_task("mlvu", tmp_path)
    assert items_of(task) == [
        ("1", "1_plotQA/movie101_66.mp4", "B", None, "plotQA"),
        ("2", "2_needle/n.mp4", "A", None, "findNeedle"),
    ]
    assert task.folder == tmp_path / "video"
    assert task.items[0].text.endswith(
        "(C) Green\n(D) Blue\nOnly give the best option.\nBest Option: ("
    )
    for response, right, strictly in (("B) Red", 1, 1), ("B", 1, 1), ("(b) red", 1, 0), ("", 0, 0),
                                      (")", 1, 0), ("Red", 0, 0)):  # fmt: skip
        assert task.right(task.items[0], response) == right
        assert task.strictly_right(task.items[0], response) == strictly
    # The mean of two tasks, of 3 and 1 questions.
    assert task.mean(np.array([3.0, 0.0]), np.array([3.0, 1.0])) == 0.5


def test_egoschema_as_published(tmp_path: Path) -> None:
    written(tmp_path / "questions.json", EGOSCHEMA)
    with pytest.raises(TaskError, match=r"needs .*subset_answers.json, which is not there: put it"):
        read_task("egoschema", tmp_path)
    written(tmp_path / "subset_answers.json", {"00aa7247": 3})
    task = read_task("egoschema", tmp_path)
    assert items_of(task) == [("00aa7247", "00aa7247.mp4", "D", None, "")]
    assert "\nD. C does 3.\nE. C does 4.\n" in task.items[0].text
    assert "1 questions are left out" in task.notes[0]
    assert task.right(task.items[0], "D. C does 3.")
    written(tmp_path / "subset_answers.json", {"00aa7247": 5})
    with pytest.raises(TaskError, match=r"question 2 of .*: answer must be in 0\.\.4, .* is 5"):
        read_task("egoschema", tmp_path)


def test_rekv_s_form(tmp_path: Path) -> None:
    path = written(tmp_path / "dev_debug_mc.json", REKV)
    task = read_task(str(path))
    assert items_of(task) == [
        ("v1/1", "data/mlvu/videos/v1.mp4", "B", None, ""),
        ("v1/2", "data/mlvu/videos/v1.mp4", "A", None, ""),
    ]
    moved = read_task(str(path), videos=tmp_path / "here")
    assert [item.video for item in moved.items] == ["v1.mp4"] * 2
    assert moved.folder == tmp_path / "here"


def test_a_file_of_one_s_own_as_a_list_or_a_line_each(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, PLAIN)) + "\n\n")
    task = read_task(str(path))
    assert items_of(task) == [
        ("1", "a.mp4", "right", None, ""),
        ("2", "a.mp4", "up", 2.5, ""),
        ("cup", "b.mp4", "A cup.", None, "what"),
    ]
    assert task.items[1].choices == ("up", "down")
    assert items_of(read_task(str(written(tmp_path / "mine.json", PLAIN)))) == items_of(task)
    assert task.right(task.items[2], " a cup") and not task.right(task.items[2], "a cup of tea")
    one = read_task(str(path), limit=1)
    assert [item.video for item in one.items] == ["a.mp4", "a.mp4"]


def test_our_own_is_made_from_its_numbers() -> None:
    task = read_task("small:clips=3,split=validation")
    asked = [
        (str(n), question) for n in range(3) for question in make_clip("validation", n).questions
    ]
    assert len(asked) == len(task.items)
    for item, (video, question) in zip(task.items, asked, strict=True):
        assert (item.video, item.text, item.answer) == (video, question.text, question.answer)
        assert (item.time, item.choices) == (question.frame, ANSWERS[question.task])
    with task.open("2") as frames:
        found = list(frames)
    assert [frame.time for frame in found] == [*range(12)]
    assert np.array_equal(found[5].image, make_clip("validation", 2).frames[5])
    assert task.right(task.items[0], task.items[0].answer)
    assert not task.right(task.items[0], "")


def test_a_file_that_is_broken_says_the_line(tmp_path: Path) -> None:
    lines = [json.dumps(PLAIN[0]) for _ in range(9)]
    one_each, listed = tmp_path / "mine.jsonl", tmp_path / "mine.json"
    lines[6] = lines[6].replace(",", "", 1)
    one_each.write_text("\n".join(lines))
    listed.write_text("[\n" + ",\n".join(lines[1:]) + "\n]")
    for path in (one_each, listed):
        with pytest.raises(TaskError, match=rf"{path.name} is broken in line 7 \(.*\): correct it"):
            read_task(str(path))
    listed.write_bytes(b"\xff\xfe")
    with pytest.raises(TaskError, match=r"mine\.json cannot be read"):
        read_task(str(listed))


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([{**PLAIN[0], "answer": "C"}], "question 1 of .*: answer must be one of A, B, but is 'C'"),
        ([PLAIN[0], {"video": "a"}], "question 2 of .* has no 'answer'"),
        ([PLAIN[0], 3], "question 2 of .* must be an object, but is a int"),
        ([{**PLAIN[0], "video": " "}], "question 1 of .*: video must be a text, but is ' '"),
        ([{**PLAIN[0], "choices": ["x"]}], "choices must be a list of at least two, but is"),
        ([{**PLAIN[0], "time": "soon"}], "time must be a number from 0 on, but is 'soon'"),
        ([{**PLAIN[0], "id": "x"}] * 2, "has two questions of the name 'x'"),
        ({}, "must hold a JSON list of questions"),
        ([], "must hold a JSON list of questions"),
        ([{**OVO[0], "gt": 3}], r"question 1 of .*: gt must be in 0\.\.2, .*, but is 3"),
        ([OVO[0], {**OVO[0], "task": "XYZ"}], "question 2 of .*: task must be one of EPM"),
        (
            [{**OVO[2], "test_info": [{"count": "x"}]}],
            "moment 1 of question 1 of .*: count must be",
        ),
        ([{**VIDEO_MME[0], "answer": "E"}], "answer must be one of A, B, C, D, but is 'E'"),
        ([{**MLVU[0], "answer": "Pink"}], "answer must be one of its candidates, but is 'Pink'"),
        ([{**REKV[0], "conversations": 5}], "conversations must be a list, but is 5"),
        (
            [{**STREAMING[0], "questions": [{**STREAMING[0]["questions"][0], "answer": "E"}]}],
            "question 1 of video 1 of .*: answer must be one of A, B, C, D, but is 'E'",
        ),
        (
            [{**STREAMING[0], "questions": [{**STREAMING[0]["questions"][0], "time_stamp": "5"}]}],
            "time_stamp must be HH:MM:SS, but is '5'",
        ),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, document: Any, words: str) -> None:
    with pytest.raises(TaskError, match=words) as found:
        read_task(str(written(tmp_path / "mine.json", document)))
    assert "\n" not in str(found.value)


def test_missing_data_says_where_it_belongs(tmp_path: Path) -> None:
    for name, file in (
        ("ovo_bench", "ovo_bench_new.json"),
        ("streaming_bench", "questions_real.json"),
        ("video_mme", "videomme.json"),
    ):
        words = rf"{name} needs {re.escape(str(tmp_path / file))}, which is not there: put it there"
        with pytest.raises(TaskError, match=rf"{words} \(https://"):
            read_task(name, tmp_path)
    with pytest.raises(TaskError, match="mlvu needs .*json, which is not there"):
        read_task("mlvu", tmp_path)
    (tmp_path / "json").mkdir()
    with pytest.raises(TaskError, match="mlvu needs JSON files in .*json, but there are none"):
        read_task("mlvu", tmp_path)
    task = read_task(str(written(tmp_path / "mine.json", PLAIN)))
    with pytest.raises(TaskError, match=r"none of the 2 videos of mine is there: put them into"):
        task.check_videos()
    (tmp_path / "b.mp4").write_bytes(b"")
    task.check_videos()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nothing", f"task must be one of {', '.join(task_names())}, or a file, but is 'nothing'"),
        ("small:clips=0", "task small: clips must be at least 1, but is 0"),
        ("small:clip=3", "task small has clips, split, but no 'clip'"),
        ("small:split=x", "task small: split must be validation or test or train, but is 'x'"),
        ("ovo_bench:x=1", "task ovo_bench has no settings, but 'x=1' was given"),
    ],
)
def test_what_is_no_task_is_one_line(text: str, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        read_task(text)
