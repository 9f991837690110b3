"""The curve of a growing stream: its points, and what is committed of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import stream_length as bench

RESULTS = Path(bench.__file__).parent / "results"
FLAT = ("recent", "window", "retrieval")


def committed() -> list[bench.Point]:
    (path,) = RESULTS.glob("*-stream.json")
    return bench.load(path)


@pytest.mark.parametrize("name", bench.MEMORIES)
def test_points_say_what_is_held(name: str) -> None:
    points = bench.measure(name, 4, 2)
    assert [(point.memory, point.frames) for point in points] == [(name, 2), (name, 4)]
    assert all(point.frame_ms > 0 and point.question_ms > 0 for point in points)
    # Two layers, two heads of 16, keys and values, float32.
    token = 2 * 2 * 16 * 2 * 4
    text = points[0].device_bytes / token - 2 * 16
    if name != "recent":
        assert points[1].device_bytes == (text + 4 * 16) * token
    if name == "retrieval":
        assert points[1].host_bytes == 4 * (16 * token + 2 * 2 * 16 * 4)
    else:
        assert points[1].host_bytes == 0


def test_committed_bytes_are_flat_over_5000_frames() -> None:
    for name in FLAT:
        own = {point.frames: point for point in committed() if point.memory == name}
        assert max(own) == 5000
        later = {point.device_bytes for frames, point in own.items() if frames >= 200}
        assert len(later) == 1
    host = [point.host_bytes / point.frames for point in committed() if point.memory == "retrieval"]
    assert max(host) == min(host) > 0
    full = [point.device_bytes for point in committed() if point.memory == "full"]
    assert full == sorted(set(full))


def test_a_figure_is_drawn_of_what_is_committed(tmp_path: Path) -> None:
    bench.draw(committed(), tmp_path)
    drawn = (tmp_path / "stream-length.svg").read_text(encoding="utf-8")
    for name in bench.MEMORIES:
        assert f">{name}<" in drawn


def test_the_command_writes_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--frames", "2", "--every", "1", "--save", str(tmp_path / "s")]) == 0
    document = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    assert len(document["points"]) == 2 * len(bench.MEMORIES)
    assert bench.load(tmp_path / "s.json")[0].memory == "recent"
    assert "retrieval" in capsys.readouterr().out
    assert bench.main(["--draw", str(tmp_path / "s.json"), str(tmp_path)]) == 0
    assert (tmp_path / "stream-length.svg").is_file()
