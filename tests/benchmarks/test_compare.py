"""`benchmarks/compare.py`: what counts as slower, and its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.compare import main

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "compare.py"


def times(median: float, spread: float = 0.0) -> dict[str, float]:
    low, high = median * (1 - spread), median * (1 + spread)
    return {"median": median, "low": low, "high": high, "best": low, "rounds": 9, "calls": 1}


def result(name: str, ours: float, spread: float = 0.0, **others: float) -> dict:
    sides = {"ours": times(ours, spread)} | {side: times(t) for side, t in others.items()}
    return {"name": name, "sides": sides}


@pytest.fixture
def compare(tmp_path, capsys):
    def run(base: list[dict], head: list[dict], *options: str) -> tuple[int, str]:
        paths = []
        for name, results in (("base", base), ("head", head)):
            path = tmp_path / f"{name}.json"
            path.write_text(json.dumps({"results": results}))
            paths.append(str(path))
        code = main([*paths, *options])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def test_the_same_is_no_regression(compare):
    results = [result("a", 1.0, eager=5.0)]
    assert compare(results, results) == (0, "1 compared: 0 slower, 0 faster, 1 as before\n")


def test_slower_is_named_and_fails(compare):
    code, text = compare([result("a", 1.0, eager=5.0)], [result("a", 1.3, eager=5.0)])
    assert code == 1
    assert "slower: a: 1000 ms -> 1300 ms, 1.30 ×" in text


def test_faster_passes(compare):
    code, text = compare([result("a", 1.3, eager=5.0)], [result("a", 1.0, eager=5.0)])
    assert code == 0 and "faster: a:" in text


def test_below_the_threshold_is_as_before(compare):
    base, head = [result("a", 1.0, eager=5.0)], [result("a", 1.08, eager=5.0)]
    assert compare(base, head)[0] == 0
    assert compare(base, head, "--threshold", "0.05")[0] == 1


def test_within_the_noise_is_as_before(compare):
    base, head = result("a", 1.0, 0.1, eager=5.0), result("a", 1.3, 0.1, eager=5.0)
    assert compare([base], [head])[0] == 0


def test_a_slower_machine_is_not_our_regression(compare):
    base = [result("a", 1.0, eager=5.0, read=0.5)]
    assert compare(base, [result("a", 2.0, eager=10.0, read=1.0)])[0] == 0
    assert compare(base, [result("a", 1.0, eager=2.5, read=0.25)])[0] == 1


def test_an_overhead_is_judged_by_its_allocation(compare):
    def overhead(op: float, empty: float) -> dict:
        sides = {"op": times(op), "function": times(op), "empty": times(empty)}
        return {"name": "o", "sides": sides | {"allocate": times(1.0)}}

    # The empty op is ours too: it may not excuse the op.
    assert compare([overhead(4.0, 1.0)], [overhead(8.0, 2.0)])[0] == 1


def test_gone_and_new_are_named(compare):
    base = [result("a", 1.0), result("b", 1.0)]
    code, text = compare(base, [result("a", 1.0), result("c", 1.0)])
    assert code == 0 and "gone: b" in text and "new: c" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("{", "is not a result"),
        ("[]", "is not a result"),
        ('{"results": [{"name": "a", "sides": {"eager": {}}}]}', "is not a result"),
        ('{"results": []}', "no benchmark in common"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_2(tmp_path, content, words):
    base, head = tmp_path / "base.json", tmp_path / "head.json"
    base.write_text(json.dumps({"results": [result("a", 1.0)]}))
    if content is not None:
        head.write_text(content)
    command = [sys.executable, str(SCRIPT), str(base), str(head)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert words in ended.stderr and ended.stderr.count("\n") == 1
