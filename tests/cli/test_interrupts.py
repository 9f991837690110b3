"""How `stc` ends when it is told to: a first signal stops the run, a second costs no file."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import pytest

import stc_stream.report.page as page
from stc_stream.report.document import stream_schema
from stc_stream.report.gallery import Gallery

from .conftest import Outcome, told_to_stop

Stc = Callable[..., Outcome]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """Answer signals as a terminal's command does, whoever started the tests deaf to them."""
    usual = [signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL]
    before = [signal.signal(*pair) for pair in zip(SIGNALS, usual, strict=True)]
    yield
    for pair in zip(SIGNALS, before, strict=True):
        signal.signal(*pair)


@pytest.fixture
def stopped_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, signal.Signals], None]:
    """Have a signal come after exactly that many frames."""

    def at(frames: int, number: signal.Signals) -> None:
        offer, seen = Gallery.offer, []

        def offer_and_stop(self: Gallery, result: object) -> None:
            offer(self, result)
            seen.append(result)
            if len(seen) == frames:
                signal.raise_signal(number)

        monkeypatch.setattr(Gallery, "offer", offer_and_stop)

    return at


@pytest.fixture
def signalled_while_writing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have signals come while the page is made."""

    def during(*numbers: signal.Signals) -> None:
        render = page.render

        def render_and_stop(*arguments: object) -> str:
            for number in numbers:
                signal.raise_signal(number)
            return render(*arguments)

        monkeypatch.setattr(page, "render", render_and_stop)

    return during


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_leaves_what_there_is(
    stc: Stc, tiny_model: Path, video: Path, tmp_path: Path, number: signal.Signals,
    stopped_at: Callable[..., None],
) -> None:  # fmt: skip
    before = [signal.getsignal(each) for each in SIGNALS]
    stopped_at(3, number)
    document = tmp_path / "numbers.json"
    outcome = stc("stream", video, "--model", tiny_model, "--json", document)
    assert outcome.code == 0
    assert "warning: stopped at frame 2" in outcome.err
    assert "grey.mp4: 3 frames" in outcome.out
    numbers = json.loads(document.read_text())
    jsonschema.validate(numbers, stream_schema())
    assert (numbers["complete"], len(numbers["frames"])) == (False, 3)
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.parametrize("stopped", [True, False])
@pytest.mark.parametrize("second", SIGNALS)
def test_a_signal_while_files_are_written_costs_none(
    stc: Stc, tiny_model: Path, video: Path, tmp_path: Path, second: signal.Signals, stopped: bool,
    stopped_at: Callable[..., None], signalled_while_writing: Callable[..., None],
) -> None:  # fmt: skip
    if stopped:
        stopped_at(5, signal.SIGINT)
    signalled_while_writing(second)
    report, document = tmp_path / "report", tmp_path / "numbers.json"
    options = ("--report", report, "--json", document)
    outcome = stc("stream", video, "--model", tiny_model, *options)
    assert outcome.code == 0
    assert outcome.err.count("writing what there is") == 1
    assert ("stopped at frame 4" in outcome.err) == stopped
    assert len(json.loads(document.read_text())["frames"]) == (5 if stopped else 8)
    assert "</html>" in (report / "index.html").read_text()


def test_one_signal_more_says_what_is_missing(
    stc: Stc, tiny_model: Path, video: Path, tmp_path: Path,
    signalled_while_writing: Callable[..., None],
) -> None:  # fmt: skip
    signalled_while_writing(signal.SIGINT, signal.SIGTERM)
    report, document = tmp_path / "report", tmp_path / "numbers.json"
    options = ("--report", report, "--json", document)
    outcome = stc("stream", video, "--model", tiny_model, *options)
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1] == f"stc: stopped before the report was written to {report}"
    assert len(json.loads(document.read_text())["frames"]) == 8
    assert list(report.iterdir()) == []


def test_what_is_ignored_stays_ignored(
    stc: Stc, tiny_model: Path, video: Path, stopped_at: Callable[..., None]
) -> None:
    """As `nohup` has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stopped_at(3, signal.SIGHUP)
        outcome = stc("stream", video, "--model", tiny_model)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (outcome.code, outcome.err) == (0, "")
    assert "grey.mp4: 8 frames" in outcome.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_told_to_stop(
    tiny_model: Path, video: Path, tmp_path: Path, number: signal.Signals
) -> None:
    report, document = tmp_path / "report", tmp_path / "numbers.json"
    code = (
        "import sys; from stc_stream.cli import main\n"
        "from stc_stream.report.gallery import Gallery\n"
        "offer = Gallery.offer\n"
        "def offer_and_wait(self, result):\n"
        "    offer(self, result)\n"
        "    if result.numbers.index == 3:\n"
        "        print('four frames', flush=True)\n"
        "        sys.stdin.readline()\n"
        "Gallery.offer = offer_and_wait\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["stream", str(video), "--model", str(tiny_model),
                 "--report", str(report), "--json", str(document)]  # fmt: skip
    outcome = told_to_stop(code, arguments, "four frames", number)
    out, err = outcome.out, outcome.err
    assert outcome.code == 0, err
    assert "Traceback" not in err
    assert "warning: stopped at frame 3" in err
    assert "ViT dense" in out
    numbers = json.loads(document.read_text())
    jsonschema.validate(numbers, stream_schema())
    assert not numbers["complete"]
    assert len(numbers["frames"]) == 4
    assert "stopped before the end" in (report / "index.html").read_text()
