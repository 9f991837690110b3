"""Made-up scenes: clips follow from their numbers, pixels and answers from what happens in them."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from stc_stream.evaluate.scenes import (
    ANSWERS,
    FRAMES,
    PHOTOGRAPHS,
    TASKS,
    Script,
    Square,
    State,
    ask,
    make_clip,
    make_script,
    pictures,
    question_texts,
    write_script,
)
from stc_stream.evaluate.scenes.script import CAMERAS, COLOURS, PATTERNS

pytest.importorskip("skimage", reason="photographs come with scikit-image")
pytest.importorskip("PIL")

SPLITS = ("train", "validation", "test")
RGB = {
    "red": (215, 40, 40),
    "green": (40, 175, 65),
    "blue": (45, 80, 225),
    "yellow": (235, 215, 45),
    "purple": (165, 55, 205),
    "white": (245, 245, 245),
}
# Five rows of three dots, an octal digit each.
DIGITS = (0o75557, 0o26227, 0o71747, 0o71317, 0o55711, 0o74717, 0o74757, 0o71222, 0o75757, 0o75717)
DARK, PLATE = 25, 230


@pytest.fixture
def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def some_number(generator: np.random.Generator) -> int:
    return int(generator.integers(2**40))


def test_a_clip_follows_from_its_arguments(generator: np.random.Generator) -> None:
    number = some_number(generator)
    clip, again = make_clip("test", number, 9), make_clip("test", number, 9)
    np.testing.assert_array_equal(clip.frames, again.frames)
    assert clip.script == again.script == make_script("test", number, 9)
    assert clip.questions == again.questions
    assert clip.frames.shape == (9, 96, 96, 3)
    assert clip.frames.dtype == np.uint8
    others = [make_clip("test", number + 1, 9), make_clip("validation", number, 9)]
    for other in (*others, make_clip("train", number, 9)):
        assert (clip.frames != other.frames).mean() > 0.1
        assert clip.script != other.script
    assert len(make_clip("test", number).frames) == FRAMES


def test_questions_come_in_order_one_of_a_task(generator: np.random.Generator) -> None:
    for frames in (4, 5, 12, 17):
        clip = make_clip("train", some_number(generator), frames)
        moments = [question.frame for question in clip.questions]
        assert moments == sorted(moments)
        assert all(frames // 3 <= moment < frames for moment in moments)
        tasks = [question.task for question in clip.questions]
        assert len(set(tasks)) == len(tasks)
        assert "sign" in tasks


def test_no_photograph_is_in_two_splits() -> None:
    names = [name for split in SPLITS for name in PHOTOGRAPHS[split]]
    assert len(set(names)) == len(names)
    folder = Path(find_spec("skimage").origin).parent / "data"
    assert [name for name in names if not (folder / name).exists()] == []


def test_a_split_opens_its_own_photographs_alone(
    generator: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in SPLITS:
        opened = set()

        def photograph(name: str, opened: set[str] = opened) -> np.ndarray:
            opened.add(name)
            return np.zeros((200, 300, 3), np.uint8)

        monkeypatch.setattr(pictures, "_photograph", photograph)
        for _ in range(200):
            background = pictures.background(split, generator)
            assert background.shape == (160, 160, 3)
            assert background.dtype == np.float32
        assert opened == set(PHOTOGRAPHS[split])


def arbitrary_states(generator: np.random.Generator) -> list[State]:
    """Squares that come and go as they like, several at once, digits and rings too."""
    states = []
    patterns = {colour: PATTERNS[generator.integers(4)] for colour in COLOURS}
    actors = generator.permutation(COLOURS)[:4]
    for _ in range(generator.integers(1, 14)):
        squares = tuple(
            Square(str(colour), patterns[colour], *map(int, generator.integers(0, 81, 2)))
            for colour in actors
            if generator.random() < 0.3
        )
        ring = COLOURS[generator.integers(6)] if generator.random() < 0.3 else None
        states.append(State(squares, int(generator.integers(2)), ring))
    return states


def told(task: str, text: str, seen: list[State]) -> tuple[str, bool]:
    """Answer a question by its words, and tell whether the last frame would do."""
    last = seen[-1]
    named = re.findall("|".join(COLOURS), text)
    shows = {
        colour: [colour in [s.colour for s in state.squares] for state in seen] for colour in named
    }
    if task in ("where", "pattern"):
        (colour,) = named
        square = [s for state in seen for s in state.squares if s.colour == colour][-1]
        row = ("top", "middle", "bottom")[(square.y + 8) // 32]
        column = ("left", "centre", "right")[(square.x + 8) // 32]
        answer = f"{row} {column}" if task == "where" else square.pattern
        return answer, any(s.colour == colour for s in last.squares)
    if task == "back":
        line = "".join("01"[here] for here in shows[named[0]])
        return "yes" if re.search("10+1", line) else "no", False
    if task == "first":
        one, other = named
        return (one if shows[one].index(True) < shows[other].index(True) else other), False
    if task == "sign":
        return str(last.digit), True
    if task == "before":
        return [str(state.digit) for state in seen if state.digit != last.digit][-1], False
    if task == "count":
        return str(len({s.colour for state in seen for s in state.squares})), False
    assert task == "ring"
    return [state.ring for state in seen if state.ring][-1], last.ring is not None


def can_be_asked(task: str, seen: list[State]) -> bool:
    came = {}
    for frame, state in enumerate(seen):
        for square in state.squares:
            came.setdefault(square.colour, frame)
    if task == "before":
        return len({state.digit for state in seen}) > 1
    if task == "ring":
        return any(state.ring for state in seen)
    return task == "sign" or (len(set(came.values())) > 1 if task == "first" else bool(came))


@pytest.mark.parametrize("kind", ["scripts", "arbitrary"])
def test_answers_and_nothing_beyond_the_moment(kind: str, generator: np.random.Generator) -> None:
    texts, answered = set(question_texts()), set()
    for _ in range(60):
        if kind == "scripts":
            states = list(write_script(generator, int(generator.integers(4, 17))).states)
        else:
            states = arbitrary_states(generator)
        for task in TASKS:
            for frame in range(len(states)):
                seed = int(generator.integers(2**32))
                question = ask(task, states, frame, np.random.default_rng(seed))
                seen = states[: frame + 1]
                # The same question, whether or not there is anything after its moment.
                assert ask(task, seen, frame, np.random.default_rng(seed)) == question
                if task != "back" or not can_be_asked(task, seen):
                    assert (question is not None) == can_be_asked(task, seen)
                if question is None:
                    continue
                assert (question.task, question.frame) == (task, frame)
                assert (question.answer, question.in_last_frame) == told(task, question.text, seen)
                assert question.text in texts
                assert question.answer in ANSWERS[task]
                answered.add((task, question.answer))
    assert {("back", "yes"), ("back", "no"), ("count", "4")} <= answered
    assert {task for task, _ in answered} == set(TASKS)


def test_what_a_question_asks_about_is_chosen_from_all_there_is() -> None:
    here = Square("red", "plain", 0, 0)
    gone = [Square("blue", "barred", 32, 0), Square("white", "striped", 64, 64)]
    states = [State((here, *gone), 3, None), State((here,), 3, None)]
    asked = [ask("where", states, 1, np.random.default_rng(i)) for i in range(300)]
    share = {colour: sum(colour in q.text for q in asked) / 300 for colour in COLOURS}
    assert share["green"] == share["yellow"] == share["purple"] == 0
    assert 0.2 < share["blue"] < 0.45
    assert 0.2 < share["white"] < 0.45
    assert 0.2 < share["red"] < 0.5


def drawn(square: Square) -> np.ndarray:
    """What a square should look like, pixel by pixel."""
    area = np.zeros((16, 16, 3))
    for y in range(16):
        for x in range(16):
            dark = {
                "plain": False,
                "striped": y in (4, 5, 6, 7, 12, 13, 14, 15),
                "barred": x in (4, 5, 6, 7, 12, 13, 14, 15),
                "checked": (y // 4) % 2 != (x // 4) % 2,
            }[square.pattern]
            area[y, x] = DARK if dark or y in (0, 15) or x in (0, 15) else RGB[square.colour]
    return area


def sign(digit: int) -> np.ndarray:
    area = np.full((16, 16, 3), PLATE)
    for row in range(5):
        for column in range(3):
            if DIGITS[digit] >> (3 * (4 - row) + 2 - column) & 1:
                area[3 * row : 3 * row + 3, 4 + 3 * column : 7 + 3 * column] = DARK
    return area


def free_of_objects(script: Script) -> np.ndarray:
    """Which pixels show the background in every frame, where nothing else moves."""
    background = np.ones((96, 96), bool)
    places = [script.sign, script.corner]
    places += [(s.x, s.y) for state in script.states for s in state.squares]
    for x, y in places:
        background[y : y + 16, x : x + 16] = False
    return background


def test_pixels_show_what_the_script_says(generator: np.random.Generator) -> None:
    cameras, gains = set(), []
    first = some_number(generator)
    for number in range(first, first + 40):
        clip = make_clip("test", number, 8)
        cameras.add(clip.script.camera)
        for frame, state in zip(clip.frames.astype(float), clip.script.states, strict=True):

            def at(x: int, y: int, frame: np.ndarray = frame) -> np.ndarray:
                return frame[y : y + 16, x : x + 16]

            gain = np.median(at(*clip.script.sign)[15]) / PLATE
            if clip.script.camera == "light":
                gains.append(gain)
                if gain > 1.08:
                    continue  # too bright for the plate to tell
            else:
                assert abs(gain - 1) < 0.02
            objects = [(clip.script.sign, sign(state.digit))]
            objects += [((s.x, s.y), drawn(s)) for s in state.squares]
            for place, expected in objects:
                error = np.abs(at(*place) - np.clip(gain * expected, 0, 255))
                assert error.mean() < 6  # noise's deviation is 4 at most
                assert error.max() < 35
            if state.ring:
                border = np.ones((16, 16), bool)
                border[4:12, 4:12] = False
                ring = at(*clip.script.corner)[border]
                expected = np.clip(gain * np.array(RGB[state.ring]), 0, 255)
                assert np.abs(ring - expected).mean() < 6
    assert len(cameras) > 1
    assert not gains or max(gains) - min(gains) > 0.02


def test_light_changes_all_that_a_frame_shows(generator: np.random.Generator) -> None:
    found = 0
    while found < 3:
        number = some_number(generator)
        script = make_script("train", number, 6)
        if script.camera != "light" or script.movers:
            continue
        frames = make_clip("train", number, 6).frames.astype(float)
        x, y = script.sign
        plate = frames[:, y + 15, x : x + 16].mean(axis=(1, 2))
        if plate.max() > 245:
            continue  # clipped
        found += 1
        np.testing.assert_allclose(plate, np.linspace(plate[0], plate[-1], 6), atol=3)
        background = frames[:, free_of_objects(script)]
        seen = ((background > 60) & (background < 200)).all(axis=0)
        if seen.sum() > 500:
            level = background[:, seen].mean(axis=1)
            np.testing.assert_allclose(level / level[0], plate / plate[0], rtol=0.03)


def test_a_still_camera_sees_the_same_background_but_for_noise(
    generator: np.random.Generator,
) -> None:
    found = 0
    while found < 3:
        number = some_number(generator)
        script = make_script("validation", number, 6)
        if script.camera != "still" or script.movers:
            continue
        found += 1
        clip = make_clip("validation", number, 6)
        seen = clip.frames[:, free_of_objects(script)].astype(float)
        assert seen.std(axis=0).mean() < 5
        assert (clip.frames[0] != clip.frames[1]).any()


@pytest.mark.parametrize("frames", [4, 5, 7, 12, 23])
def test_scripts(frames: int, generator: np.random.Generator) -> None:
    for _ in range(40):
        script = write_script(generator, frames)
        assert len(script.states) == frames
        assert script.camera in CAMERAS
        assert all(edge % 8 == 0 for edge in script.sign)
        arrivals = {}
        for frame, state in enumerate(script.states):
            objects = [script.sign, script.corner, *((s.x, s.y) for s in state.squares)]
            covered = np.zeros((96, 96), int)
            for x, y in objects:
                assert 0 <= x <= 80
                assert 0 <= y <= 80
                covered[y : y + 16, x : x + 16] += 1
            assert covered.max() == 1
            assert len({s.colour for s in state.squares}) == len(state.squares) <= 4
            for square in state.squares:
                arrivals.setdefault(square.colour, frame)
                # A square's centre is clear of the lines between ninths, or nobody could say.
                for edge in (square.x, square.y):
                    assert min(abs(edge + 8 - 32), abs(edge + 8 - 64)) >= 8
        assert len(set(arrivals.values())) == len(arrivals)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("exam", 0), "split must be one of train, validation, test, but is 'exam'"),
        (("test", -3), "number must be at least 0, but is -3"),
        (("test", 0, 3), "frames must be at least 4, but is 3"),
    ],
)
def test_wrong_arguments_of_a_clip(arguments: tuple, message: str) -> None:
    for function in (make_clip, make_script):
        with pytest.raises(ValueError, match=f"^{message}$"):
            function(*arguments)


def test_wrong_arguments_of_a_question(generator: np.random.Generator) -> None:
    states = write_script(generator, 6).states
    with pytest.raises(ValueError, match=r"^task must be one of where, .*ring, but is 'colour'$"):
        ask("colour", states, 0, generator)
    for frame in (-1, 6, 90):
        with pytest.raises(ValueError, match=f"^frame must be from 0 to 5, but is {frame}$"):
            ask("sign", states, frame, generator)


@pytest.mark.parametrize(("module", "package"), [("skimage", "scikit-image"), ("PIL", "Pillow")])
def test_a_missing_package_is_named_with_its_extra(
    module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(name: str) -> object:
        return None if name == module else find_spec(name)

    def until_a_photograph_is_needed() -> None:
        for number in range(100):
            make_clip("test", number, 4)

    pictures._photograph.cache_clear()
    monkeypatch.setattr(pictures, "find_spec", found)
    with pytest.raises(ModuleNotFoundError, match=rf"{package} isn't.*stc-kernels\[scenes\]"):
        until_a_photograph_is_needed()
