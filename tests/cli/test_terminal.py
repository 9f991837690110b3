"""What `stc` prints: names that do nothing to a terminal, and numbers that are never cut."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from rich import box
from rich.console import Console
from rich.table import Table

from stc_stream.report.terminal import print_table, printable, some

from .conftest import Outcome

Stc = Callable[..., Outcome]
NASTY = "a\x1b[31mred\x07\rb\nc\x9b2Jd\u202ee\u2028f"


def test_printable_is_one_harmless_line_and_leaves_letters() -> None:
    assert printable("Zoë ☃ 👩‍💻 日本.mp4") == "Zoë ☃ 👩‍💻 日本.mp4"
    for number in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)):
        shown = printable(f"x{chr(number)}y")
        assert shown.isprintable()
        assert shown.startswith("x\\") and shown.endswith("y")
    assert printable(NASTY) == r"a\x1b[31mred\x07\rb\nc\x9b2Jd\u202ee\u2028f"


def test_names_do_nothing_to_the_terminal(
    stc: Stc, tiny_model: Path, video: Path, tmp_path: Path
) -> None:
    video = video.rename(tmp_path / f"{NASTY}.mp4")
    model = shutil.copytree(tiny_model, tmp_path / NASTY)
    document, report = tmp_path / f"{NASTY}.json", tmp_path / f"out{NASTY}"
    options = ("--json", document, "--report", report)
    outcome = stc("stream", video, "--model", model, *options)
    assert (outcome.code, outcome.err) == (0, "")
    assert not {"\x1b", "\x07", "\r", "\x9b", "\u202e", "\u2028"} & set(outcome.out)
    assert outcome.out.count(printable(NASTY)) >= 4
    # What is not for the eye keeps the name as it is.
    assert json.loads(document.read_text())["source"]["name"] == video.name
    options = ("--rounds", 1, "--no-compile", "--streams", 1, "--update-ratio", 0.5)
    outcome = stc("bench", "--model", model, *options)
    assert (outcome.code, outcome.err) == (0, "")
    assert not {"\x1b", "\x07", "\r", "\x9b", "\u202e"} & set(outcome.out)


@pytest.mark.parametrize(
    "arguments",
    [
        (f"no {NASTY}.mp4",),
        ("x.mp4", "--model", NASTY),
        ("x.mp4", "--json", f"/no/{NASTY}"),
        ("x.mp4", "--dtype", NASTY),
        ("x.mp4", f"--{NASTY}"),
    ],
)
def test_what_is_wrong_does_nothing_to_the_terminal(stc: Stc, arguments: tuple[str, ...]) -> None:
    outcome = stc("stream", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.endswith("\n")
    assert outcome.err[:-1].isprintable()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_a_table_folds_between_words_only(width: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(20):
        columns, rows = rng.randint(1, 9), rng.randint(1, 4)
        cells = [
            [f"{rng.random() * 10 ** rng.randint(0, 6):.3f} ({rng.randint(0, 999)})"
             for _ in range(columns)] for _ in range(rows + 1)
        ]  # fmt: skip
        table = Table(*cells[0], box=box.SIMPLE_HEAD, pad_edge=False)
        for row in cells[1:]:
            table.add_row(*row)
        console = Console(file=io.StringIO(), width=width)
        print_table(console, table)
        printed = console.file.getvalue()
        words = Counter(" ".join(cell for row in cells for cell in row).split())
        assert Counter(word for word in printed.split() if set(word) != {"─"}) == words
        narrowest = sum(
            max(len(word) for row in cells for word in row[place].split())
            for place in range(columns)
        )
        # A box of this kind has an edge on both sides, and a space between columns.
        if narrowest + columns + 1 <= width:
            assert max(map(len, printed.splitlines())) <= width


def test_some_are_spread_evenly() -> None:
    assert some(0, 3) == []
    assert some(1, 3) == [0]
    assert some(3, 5) == [0, 1, 2]
    assert some(9, 3) == [0, 4, 8]
    assert some(1000, 4) == [0, 333, 666, 999]


def test_a_run_of_refreshes_only_says_nothing_of_selective_frames(
    stc: Stc, tiny_model: Path, video: Path
) -> None:
    options = ("--model", tiny_model, "--refresh-interval", 1)
    outcome = stc("stream", video, *options)
    assert outcome.code == 0
    assert "not a number" not in outcome.out
    assert "selective" not in outcome.out
