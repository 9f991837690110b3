"""The report of a stream with questions: its numbers, its pictures, and a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from stc_stream import CacherConfig, FullMemory, PrunerConfig
from stc_stream.evaluate.answers import AnswerRun, SessionComparison
from stc_stream.evaluate.method import Method
from stc_stream.evaluate.moments import Chunk, Question, moments
from stc_stream.report.answers.album import Album
from stc_stream.report.answers.charts import all_kept, cache_chart, growth
from stc_stream.report.answers.page import render, write_answers_report
from stc_stream.report.answers.run import AnswersRun, AskedQuestion, FedFrames
from stc_stream.report.answers.table import answers_table, verdict
from stc_stream.session.load import load_video_llm
from stc_stream.video import open_video

from .test_report import Page, served

Answered = tuple[AnswersRun, Album]


@pytest.fixture(scope="module")
def answered(tiny_llm: Path, sample: Path) -> Answered:
    """Twelve frames of the sample, in chunks of two, and two questions."""
    llm = load_video_llm(str(tiny_llm), device="cpu")
    methods = (Method("dense"), Method("stc", CacherConfig(), PrunerConfig.paper()))
    chunks, asked, album = [], [], Album()
    questions = [Question("What is on the table?"), Question("What now?", 0.5)]
    with SessionComparison(llm.model, llm.processor, methods, max_new_tokens=4) as comparison:
        for moment in moments(open_video(sample, frames=12), questions, 2):
            if isinstance(moment, Chunk):
                runs = comparison.feed(moment.images, moment.times)
                indices = tuple(frame.index for frame in moment.frames)
                chunks.append(FedFrames(indices, tuple(moment.times), runs))
                for image in moment.images:
                    album.add(image)
            else:
                runs = comparison.ask(moment.text)
                time = chunks[-1].times[-1]
                asked.append(AskedQuestion(moment, chunks[-1].indices[-1] + 1, time, runs))
    return AnswersRun("sample.mp4", llm, methods, "kept", 2, 4, tuple(chunks), tuple(asked)), album


def with_answers(run: AnswersRun, *runs: AnswerRun | None) -> AnswersRun:
    """Return the run with one question that was answered so."""
    return replace(run, asked=(replace(run.asked[-1], runs=runs),))


def pictures(text: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_the_page_is_whole_and_holds_everything(answered: Answered) -> None:
    run, album = answered
    text = render(run, album)
    page = Page(text)
    assert verdict(run) in page.text
    for words in (
        "Where the time went",
        "Frames, questions and answers",
        "What the memory holds",
        "of the whole",
        "What is on the table?",
        "at 0.50 s, behind 7 frames",
    ):
        assert words in page.text
    assert not page.all("script") and not page.all("link")
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert len(pictures(text)) == len(page.all("figure")) == 10
    for image in page.all("img"):
        assert image["alt"] and image["width"] and image["height"]
    assert len(text) < 2**20
    # What scrolls can be reached with the keyboard.
    scrolls = [a for _, a in page.tags if {"chart", "scroll"} & set((a.get("class") or "").split())]
    headings = {attributes["id"] for attributes in page.all("h2")}
    assert len(scrolls) == 2
    for attributes in scrolls:
        assert attributes["tabindex"] == "0" and attributes["aria-labelledby"] in headings


def test_bars_are_as_wide_as_their_stages_take(answered: Answered) -> None:
    run, album = answered
    text = render(run, album)
    bars = re.findall(r'<div class="bar".*?</div>', text, re.DOTALL)
    longest = max(times.whole for times in run.times)
    for bar, times in zip(bars, run.times, strict=True):
        widths = dict(re.findall(r"width: ([\d.]+)%; background: var\(--(\w+)\)", bar))
        for width, stage in widths.items():
            assert float(width) == pytest.approx(100 * times.seconds[stage] / longest, abs=1e-3)
        assert sum(map(float, widths)) == pytest.approx(100 * times.whole / longest, abs=0.01)


def test_marks_stand_where_questions_were_asked(answered: Answered) -> None:
    run, album = answered
    marks = re.findall(r'href="#question-(\d)" style="left: ([\d.]+)%"', render(run, album))
    assert [(int(number), float(left)) for number, left in marks] == [(1, 58.33), (2, 100.0)]


def test_what_was_said_cannot_break_the_page(answered: Answered) -> None:
    run, album = answered
    said = AnswerRun("<script>alert('x')</script>\n\x1b[31mred", 3, {}, "limit")
    question = Question("<b>bold</b>?")
    asked = AskedQuestion(question, 12, 1.0, (said, said))
    text = render(replace(run, source="<i>.mp4", asked=(asked,)), album)
    page = Page(text)
    assert not page.all("script") and not page.all("b") and not page.all("i")
    assert "<script>alert('x')</script>" in page.text and "<b>bold</b>?" in page.text
    assert "\x1b" not in text


def test_frames_that_were_brought_back_are_shown(tiny_llm: Path, answered: Answered) -> None:
    run, _ = answered
    album = Album()
    for number in range(12):
        album.add(np.full((30, 40, 3), 20 * number, np.uint8))
    # Frame 3 in every layer, frames 8 and 0 in one each.
    brought = AnswerRun("a", 1, {}, "limit", retrieved=((0, 3), (3, 8)))
    text = render(with_answers(run, brought, brought), album)
    page = Page(text)
    assert "3 frames brought back:" in page.text
    shown = text[text.index('<div class="retrieved">') :]
    levels = [np.asarray(image).mean() / 20 for image in pictures(shown)]
    assert np.allclose(levels, [0, 3, 8], atol=0.2)
    labels = re.findall(r"<figcaption>([\d.]+) s · (\d) of 2 layers", shown)
    assert labels == [("0.0", "1"), ("0.2", "2"), ("0.7", "1")]
    assert "brought back" not in Page(render(run, album)).text


def test_of_many_frames_those_of_most_layers_are_shown(answered: Answered) -> None:
    run, album = answered
    layers = tuple(tuple(range(layer % 2, 12)) for layer in range(4))
    many = replace(run, chunks=run.chunks * 3)
    brought = AnswerRun("a", 1, {}, "limit", retrieved=(*layers, tuple(range(20))))
    page = Page(render(with_answers(many, brought, brought), album))
    assert "20 frames brought back; those that most of the 5 layers brought:" in page.text
    labels = re.findall(r"(\d) of 5 layers", page.text)
    assert sorted(labels, reverse=True) == ["5"] * 11 + ["3"]


def test_an_album_holds_few_and_finds_the_nearest() -> None:
    album = Album(most=8)
    rng = np.random.default_rng()
    levels = rng.integers(0, 256, 100)
    for level in levels:
        album.add(np.full((400, 900, 3), level, np.uint8))
    held = {album.nearest(number).number for number in range(100)}
    assert len(held) <= 8 and 0 in held
    for number in range(100):
        found = album.nearest(number)
        assert abs(found.number - number) == min(abs(own - number) for own in held)
        data = base64.b64decode(found.uri.partition(",")[2])
        image = Image.open(io.BytesIO(data))
        assert image.size == (found.width, found.height) and image.width == 192
        assert abs(np.asarray(image).mean() - levels[found.number]) < 2


def test_the_chart_is_of_what_the_sessions_held(answered: Answered) -> None:
    run, _ = answered
    for place in (0, 1):
        frames, device, host = growth(run, place)
        # The question at 0.5 s comes behind seven frames.
        assert frames.tolist() == [0, 2, 4, 6, 7, 9, 11, 12]
        runs = [chunk.runs[place] for chunk in run.chunks]
        assert device.tolist() == [0, *(own.stats.bytes_device for own in runs)]
        assert not host.any()
    # The compressed memory is the full one here: what it would hold is what it holds.
    reference = all_kept(run)
    assert reference is not None
    np.testing.assert_allclose(reference[1], growth(run, 1)[1])
    svg = ElementTree.fromstring(cache_chart(run))
    assert svg.attrib["aria-label"] == "Bytes of keys and values held over the frames"
    assert "var(--cut)" not in cache_chart(run)


def test_another_memory_is_held_against_the_full_one(answered: Answered) -> None:
    run, album = answered

    class Forgetful:
        def open(self, config: object) -> object:
            raise AssertionError("never opened")

        def __repr__(self) -> str:
            return "Forgetful()"

    methods = (run.methods[0], replace(run.methods[1], memory=Forgetful()))
    other = replace(run, methods=methods)
    assert "var(--cut)" in cache_chart(other)
    assert "compressed, Forgetful()" in Page(render(other, album)).text


def test_what_went_wrong_is_on_the_page(answered: Answered) -> None:
    run, album = answered
    full = "the memory holds 64 of 70 tokens"
    last = run.chunks[-1]
    chunks = (*run.chunks[:-1], replace(last, runs=(None, last.runs[1])))
    broken = replace(
        run, chunks=chunks, complete=False, full=(full, None), warnings=("frame 3 is damaged",),
        not_asked=(Question("Who?", 9.5), Question("Why?")),
        asked=(replace(run.asked[-1], runs=(None, run.asked[-1].runs[1])),),
    )  # fmt: skip
    page = Page(render(broken, album))
    for words in ("stopped before the end", f"dense: {full}", "frame 3 is damaged",
                  "Not asked, at 9.5 s: Who?", "Not asked: Why?", "not asked"):  # fmt: skip
        assert words in page.text
    assert (broken.compared_frames, broken.compared_questions) == (11, 0)
    console = Console(file=io.StringIO(), width=80)
    console.print(answers_table(broken))
    assert "11 frames and 0 answers" in console.file.getvalue()


def test_where_nothing_ran_both_ways_that_is_said(answered: Answered) -> None:
    run, album = answered
    chunks = tuple(replace(chunk, runs=(None, chunk.runs[1])) for chunk in run.chunks)
    one = replace(run, chunks=chunks, asked=(), full=("the memory is full", None))
    assert verdict(one) == "Nothing ran both ways: the memory is full"
    page = Page(render(one, album))
    assert "Where the time went" not in page.text and "All numbers" not in page.text
    answers_table(one)


def test_the_verdict_adds_up_what_stages_saved(answered: Answered) -> None:
    run, _ = answered

    def timed(**seconds: float) -> AnswerRun:
        return AnswerRun("", 1, seconds, "limit")

    def said(dense: AnswerRun, other: AnswerRun) -> str:
        return verdict(replace(with_answers(run, dense, other), chunks=()))

    dense = timed(tower=6.0, prefill=3.0, first_token=1.0)
    assert said(dense, timed(tower=3.0, prefill=1.0, first_token=1.0)) == (
        "STC saved 50% of the time from frames to answers on this machine: tower 30%, prefill 20%."
    )
    assert said(dense, timed(tower=7.0, prefill=3.0, first_token=1.0)).startswith("STC lost: the ")
    assert "saved nothing of the time" in said(dense, dense)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_real_browser_shows_it(
    browser: str, answered: Answered, tmp_path: Path, width: int
) -> None:
    run, album = answered
    page = write_answers_report(run, album, tmp_path / "report")
    (page.parent / "probe.html").write_text(
        f"""<iframe id="f" src="index.html" style="width:{width}px;height:3000px"></iframe>
        <script>
        document.getElementById('f').onload = async () => {{
          const d = document.getElementById('f').contentDocument;
          const images = [...d.images];
          await Promise.all(images.map(i => i.decode().catch(() => null)));
          const wide = d.documentElement;
          const across = e => e.getBoundingClientRect();
          const body = JSON.stringify({{
            images: images.filter(i => i.naturalWidth > 0 && across(i).width > 10).length,
            charts: [...d.querySelectorAll('.chart svg')].filter(e => across(e).width > 100).length,
            bars: [...d.querySelectorAll('.bar')].map(
              e => [...e.children].reduce((sum, c) => sum + across(c).width, 0) / across(e).width),
            marks: [...d.querySelectorAll('.axis a')].map(e => across(e).left),
            overflow: wide.scrollWidth - wide.clientWidth, heading: d.querySelector('h1').innerText,
          }});
          fetch('result', {{method: 'POST', body}});
        }};
        </script>""",
        encoding="utf-8",
    )
    options = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--window-size=1280,3000", f"--user-data-dir={tmp_path / 'profile'}",
    ]  # fmt: skip
    with (
        served(page.parent) as (address, posted),
        subprocess.Popen(
            [*options, "--remote-debugging-port=0", f"{address}/probe.html"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as process,
    ):  # fmt: skip
        try:
            result = json.loads(posted.get(timeout=300))
        finally:
            process.kill()
    assert (result["images"], result["charts"]) == (10, 1)
    assert result["overflow"] <= 0
    assert result["heading"] == verdict(run)
    longest = max(times.whole for times in run.times)
    shares = [times.whole / longest for times in run.times]
    assert result["bars"] == pytest.approx(shares, abs=0.02)
    assert result["marks"] == sorted(result["marks"])


def test_the_full_memory_is_named_without_what_was_not_set(answered: Answered) -> None:
    run, _ = answered

    def named(memory: object) -> str:
        methods = (run.methods[0], replace(run.methods[1], memory=memory))
        return replace(run, methods=methods).memory

    assert [named(memory) for memory in (None, FullMemory(), FullMemory(tokens=9))] == [
        "FullMemory()", "FullMemory()", "FullMemory(tokens=9)",
    ]  # fmt: skip
