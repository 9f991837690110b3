"""Where `stc` writes: nothing that was there is lost, and what can't be written is told early."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

import stc_stream.evaluate.stream
import stc_stream.towers.load
from stc_stream.report.document import stream_schema
from stc_stream.report.target import check_file, descriptor_of, is_standard_output, write_whole

from .conftest import Outcome

Stc = Callable[..., Outcome]
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


def numbers_in(text: str) -> dict[str, object]:
    numbers: dict[str, object] = json.loads(text)
    jsonschema.validate(numbers, stream_schema())
    return numbers


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "LINK"])
def test_json_at_standard_output_is_all_there_is(
    stc: Stc, tiny_model: Path, video: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "one").symlink_to("/dev/stdout")
    (tmp_path / "two").symlink_to("one")
    name = str(tmp_path / "two") if name == "LINK" else name
    report = tmp_path / "report"
    outcome = stc("stream", video, "--model", tiny_model, "--json", name, "--report", report)
    assert (outcome.code, outcome.err) == (0, "")
    assert numbers_in(outcome.out)["complete"]
    assert (report / "index.html").exists()
    assert not Path("-").exists()


def test_json_after_what_stands_in_a_file(tiny_model: Path, video: Path, tmp_path: Path) -> None:
    """Standard output is appended to a file that --json names, too."""
    log = tmp_path / "log.txt"
    log.write_text("what stood there\n")
    with log.open("a") as appended:
        done = subprocess.run(
            [sys.executable, "-m", "stc_stream.cli", "stream", str(video), "--model",
             str(tiny_model), "--json", str(log)],
            stdout=appended, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    before, _, rest = log.read_text().partition("\n")
    assert before == "what stood there"
    assert numbers_in(rest)["complete"]


@pytest.mark.parametrize("way", ["name", "link"])
def test_an_open_descriptor_is_written_to(tmp_path: Path, way: str) -> None:
    log, link = tmp_path / "log.txt", tmp_path / "link"
    log.write_text("before\n")
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    try:
        link.symlink_to(f"/proc/self/fd/{descriptor}")
        path = Path(f"/dev/fd/{descriptor}") if way == "name" else link
        assert descriptor_of(path) == descriptor
        assert not is_standard_output(path)
        check_file(path)
        write_whole(path, "after\n")
        write_whole(path, b"again\n")
    finally:
        os.close(descriptor)
    assert log.read_text() == "before\nafter\nagain\n"
    # Of no use once it is closed, and a file that can only be read is of none either.
    with pytest.raises(OSError, match="Bad file descriptor"):
        check_file(Path(f"/dev/fd/{descriptor}"))
    with log.open() as reading, pytest.raises(OSError, match="Bad file descriptor"):
        check_file(Path(f"/dev/fd/{reading.fileno()}"))
    assert descriptor_of(log) is None


def a_loop(path: Path) -> str:
    path.symlink_to(path.with_name("other"))
    path.with_name("other").symlink_to(path)
    return "levels of symbolic links"


def a_folder(path: Path) -> str:
    path.mkdir()
    return "it is a folder"


def a_link_to_nowhere(path: Path) -> str:
    path.symlink_to(path.with_name("Nowhere") / "x")
    return "there is no folder"


def a_socket(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)
        try:
            # A socket's path may not be long.
            server.bind(path.name)
        finally:
            os.chdir(here)
    return "it is a socket"


@pytest.mark.parametrize("make", [a_loop, a_folder, a_link_to_nowhere, a_socket])
@pytest.mark.parametrize("option", ["--json", "--report", "--figure"])
def test_what_cannot_be_written_is_told_before_the_run(
    stc: Stc, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str,
    make: Callable[[Path], str],
) -> None:  # fmt: skip
    def load(*arguments: object, **options: object) -> None:
        raise AssertionError("a tower was loaded")

    monkeypatch.setattr(stc_stream.towers.load, "load_tower", load)
    folder = tmp_path / "out"
    folder.mkdir()
    path = folder / {"--json": "a.json", "--report": "index.html", "--figure": "a.svg"}[option]
    words = make(path)
    before = sorted(folder.iterdir())
    command = ("bench",) if option == "--figure" else ("stream", video)
    outcome = stc(*command, option, folder if option == "--report" else path)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert words in outcome.err
    assert f"choose another {option}" in outcome.err
    assert sorted(folder.iterdir()) == before


def test_an_output_that_is_closed_or_full_is_told_before_the_run(
    stc: Stc, tiny_model: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    for command in (("stream", video), ("bench",), ("info",)):
        outcome = stc(*command)
        assert outcome.err == (
            "stc: standard output cannot be written (it is closed): send it elsewhere\n"
        )
        assert outcome.code == 2


@needs_full
@pytest.mark.parametrize("command", [("info",), ("--version",), ("stream", "--help")])
def test_a_full_output_is_one_line(
    stc: Stc, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        outcome = stc(*command)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "standard output cannot be written (no space left on device)" in outcome.err


@needs_full
def test_a_full_output_without_files_ends_before_the_run(
    stc: Stc, tiny_model: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*arguments: object) -> None:
        raise AssertionError("a frame was run")

    monkeypatch.setattr(stc_stream.evaluate.stream.StreamComparison, "step", step)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        outcome = stc("stream", video, "--model", tiny_model)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "no space left on device" in outcome.err


@needs_full
@pytest.mark.parametrize("way", ["closed", "full"])
def test_without_a_working_output_the_files_are_still_written(
    tiny_model: Path, video: Path, tmp_path: Path, way: str
) -> None:
    report, document = tmp_path / "report", tmp_path / "numbers.json"
    command = [sys.executable, "-m", "stc_stream.cli", "stream", str(video), "--model",
               str(tiny_model), "--report", str(report), "--json", str(document)]  # fmt: skip
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            preexec_fn=(lambda: os.close(1)) if way == "closed" else None,
        )  # fmt: skip
    assert numbers_in(document.read_text())["complete"]
    assert "</html>" in (report / "index.html").read_text()
    if way == "closed":
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 2
        assert done.stderr == (
            "stc: standard output cannot be written (no space left on device): send it elsewhere\n"
        )


@needs_full
def test_one_file_that_fails_leaves_the_other(
    stc: Stc, tiny_model: Path, video: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    options = ("--json", "/dev/full", "--report", report)
    outcome = stc("stream", video, "--model", tiny_model, *options)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "the JSON could not be written to /dev/full (no space left" in outcome.err
    assert "</html>" in (report / "index.html").read_text()
    assert f"report: {report / 'index.html'}\n" in outcome.out


def test_a_reader_of_the_json_that_has_gone_leaves_the_report(
    stc: Stc, tiny_model: Path, video: Path, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    report = tmp_path / "report"
    try:
        options = ("--json", f"/dev/fd/{writing}", "--report", report)
        outcome = stc("stream", video, "--model", tiny_model, *options)
    finally:
        os.close(writing)
    assert (outcome.code, outcome.err) == (0, "")
    assert (report / "index.html").exists()


def test_a_file_that_cannot_be_replaced_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a container's mounted file is: renaming onto it is refused."""
    document = tmp_path / "numbers.json"
    document.write_text("long before")

    def replace(self: Path, target: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "replace", replace)
    check_file(document)
    write_whole(document, "after")
    assert document.read_text() == "after"
    assert list(tmp_path.iterdir()) == [document]
    with pytest.raises(OSError, match="busy"):
        write_whole(tmp_path / "new.json", "after")
    assert list(tmp_path.iterdir()) == [document]
