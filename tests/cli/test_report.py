"""The report page: its markup, its pictures, and what a real browser makes of it."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread
from xml.etree import ElementTree

import jsonschema
import matplotlib
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.table import Table

from stc_stream.cacher import CacherConfig
from stc_stream.evaluate.fidelity import Fidelity
from stc_stream.evaluate.method import Method
from stc_stream.evaluate.stream import StreamComparison
from stc_stream.evaluate.summary import FrameNumbers, FrameResult, FrameView, summarise
from stc_stream.pruner import PrunerConfig, ScoreStrategy
from stc_stream.report.charts import (
    MOST_AGES,
    MOST_POINTS,
    cosine_chart,
    fidelity_chart,
    latency_chart,
)
from stc_stream.report.document import stream_document, stream_schema
from stc_stream.report.gallery import Gallery, Moment
from stc_stream.report.page import render, write_report
from stc_stream.report.pictures import OUTLINE, TINT, overlay, similarity_map, size
from stc_stream.report.run import StreamRun
from stc_stream.report.table import summary_table, verdict
from stc_stream.towers.load import load_tower
from stc_stream.video import open_video

ORDINARY = FrameNumbers(
    index=1,
    time=0.1,
    refreshed=False,
    age=1,
    scene_cut=False,
    motion=0.02,
    moving=0.1,
    dense_ms=10.0,
    compressed_ms=5.0,
    pruner_ms=0.5,
    tokens_recomputed=4.0,
    tokens_kept=4,
    similarity=0.9,
    cosine=0.99,
    cosine_min=0.9,
)


@pytest.fixture(scope="module")
def streamed(tiny_model: Path, sample: Path) -> tuple[StreamRun, tuple[Moment, ...]]:
    tower = load_tower(str(tiny_model), device="cpu")
    gallery, rows = Gallery(), []
    method = Method("stc", CacherConfig.paper(), PrunerConfig.paper())
    with StreamComparison(tower, method) as comparison:
        for frame in open_video(sample):
            result = comparison.step(frame)
            rows.append(result.numbers)
            gallery.offer(result)
    run = StreamRun(
        "sample.mp4",
        tower,
        method,
        tuple(rows),
        fidelity=comparison.fidelity,
    )
    return run, gallery.moments()


def some_run(
    streamed: tuple[StreamRun, object], *rows: FrameNumbers, **changes: object
) -> StreamRun:
    return replace(streamed[0], frames=rows, **changes)


def str_of(table: Table) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    return console.file.getvalue()


class Page(HTMLParser):
    """Collects tags and text, and checks that what is opened is closed."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_is_whole_and_holds_everything(streamed: tuple[StreamRun, tuple]) -> None:
    run, moments = streamed
    text = render(run, moments)
    page = Page(text)
    assert verdict(run) in page.text
    for word in (
        "Latency over time",
        "scene cut",
        "kept by the Pruner",
        "recomputed",
        "similarity",
    ):
        assert word in page.text
    assert len(page.all("figure")) == len(moments)
    images = page.all("img")
    assert len(images) == len(moments) + sum(m.result.view.similarity is not None for m in moments)
    for image in images:
        kind, _, data = str(image["src"]).partition(";base64,")
        assert kind in ("data:image/jpeg", "data:image/png")
        Image.open(io.BytesIO(base64.b64decode(data))).verify()
        assert image["alt"]
    assert not page.all("script")
    # Nothing is fetched: no address but the names of XML's own vocabularies.
    assert not page.all("link")
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert len(text) < 2**20


def test_what_a_video_is_called_cannot_break_the_page(streamed: tuple[StreamRun, tuple]) -> None:
    run, moments = streamed
    name = "<script>alert('x')</script>.mp4"
    page = Page(render(replace(run, source=name, warnings=("<b>bold</b>",)), moments))
    assert not page.all("script")
    assert not page.all("b")
    assert name in page.text
    assert "<b>bold</b>" in page.text


def test_an_interrupted_run_says_so(streamed: tuple[StreamRun, tuple]) -> None:
    run, moments = streamed
    words = "stopped before the end"
    assert words in Page(render(replace(run, complete=False), moments)).text
    assert words not in Page(render(run, moments)).text


@pytest.mark.parametrize("frames", [1, 2])
def test_a_very_short_run_still_makes_a_page(
    streamed: tuple[StreamRun, tuple], frames: int
) -> None:
    first = replace(ORDINARY, index=0, time=0.0, refreshed=True, motion=None, moving=None)
    view = FrameView(np.zeros((4, 4, 3), np.uint8), (4, 4), np.ones((4, 4), np.float32),
                     np.eye(4, dtype=np.bool_), None)  # fmt: skip
    run = some_run(streamed, *[replace(first, index=i) for i in range(frames)])
    page = Page(render(run, (Moment("A refresh", FrameResult(first, view)),)))
    assert "This frame is the reference" in page.text


def test_the_page_is_replaced_as_a_whole(streamed: tuple[StreamRun, tuple], tmp_path: Path) -> None:
    run, moments = streamed
    page = write_report(run, moments, tmp_path / "deep" / "er")
    before = page.read_text(encoding="utf-8")
    write_report(run, moments, page.parent)
    assert page.read_text(encoding="utf-8") == before
    assert list(page.parent.iterdir()) == [page]


def test_overlay_tints_recomputed_patches_greys_reused_and_outlines_kept() -> None:
    blue = np.full((64, 64, 3), (0, 60, 200), np.uint8)
    recomputed = np.zeros((4, 4), np.float32)
    recomputed[0, 0], recomputed[0, 3] = 1, 0.5
    kept = np.zeros((4, 4), np.bool_)
    kept[2, 1:3] = True
    picture = np.asarray(overlay(FrameView(blue, (4, 4), recomputed, kept, None)))
    side = picture.shape[0] // 4
    middle = side // 2
    whole, half = picture[middle, middle], picture[middle, 3 * side + middle]
    reused = picture[side + middle, middle]
    assert reused[0] == reused[1] == reused[2]
    # Towards the tint: red above the picture's own, and in step with the share of layers.
    assert whole[0] > half[0] > reused[0]
    assert whole[0] > TINT[0] // 3
    row = slice(2 * side, 3 * side)
    assert (picture[row, side] == OUTLINE).all()
    assert (picture[row, 3 * side - 1] == OUTLINE).all()
    assert (picture[2 * side, side : 3 * side] == OUTLINE).all()
    # No line between two kept patches, nor anywhere else.
    assert not (picture[2 * side + middle, 2 * side - 2 : 2 * side + 2] == OUTLINE).all(-1).any()
    elsewhere = picture.copy()
    elsewhere[row, side : 3 * side] = 0
    assert not (elsewhere == OUTLINE).all(-1).any()


def test_a_very_tall_frame_makes_no_huge_picture() -> None:
    ones = np.ones((4, 4), np.float32)
    for height, width in ((768, 1), (3000, 20), (1, 768)):
        image = np.zeros((height, width, 3), np.uint8)
        drawn = overlay(FrameView(image, (4, 4), ones, ones > 0, None))
        assert drawn.width <= 576
        assert drawn.height <= 1152


def test_similarity_map_goes_from_dark_to_bright() -> None:
    similarity = np.array([[0.2, 0.6], [1.0, np.nan]], np.float32)
    picture = np.asarray(similarity_map(similarity, 0.2, (6, 4)), np.int64).sum(-1)
    assert picture[0, 0] < picture[0, 3] < picture[2, 0]


@pytest.mark.parametrize("shape", [(300, 200), (200, 533), (90, 16), (1000, 10)])
def test_a_similarity_map_lies_over_its_picture(shape: tuple[int, int]) -> None:
    """Each patch that is drawn as recomputed has its own colour of the map at the same place."""
    rng = np.random.default_rng()
    grid = (5, 7)
    recomputed = (rng.random(grid) > 0.5).astype(np.float32)
    recomputed[0, :2] = (0, 1)
    view = FrameView(
        np.full((*shape, 3), (0, 0, 200), np.uint8), grid, recomputed,
        np.zeros(grid, np.bool_), 1 - recomputed,
    )  # fmt: skip
    assert view.similarity is not None
    picture = np.asarray(overlay(view), np.int64)
    drawn = np.asarray(similarity_map(view.similarity, 0.0, size(view)), np.int64)
    assert drawn.shape == picture.shape
    # Without the thin dark edge of the frame.
    inside = (slice(1, -1), slice(1, -1))
    np.testing.assert_array_equal((drawn.sum(-1) < 384)[inside], (picture[..., 0] > 100)[inside])


def test_charts_are_svg_that_takes_its_ink_from_the_page() -> None:
    rows = [replace(ORDINARY, index=i, time=i / 10, refreshed=i % 4 == 0) for i in range(9)]
    rows[5] = replace(rows[5], scene_cut=True, cosine=None)
    for draw in (latency_chart, cosine_chart):
        svg = draw(rows)
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg")
        assert root.attrib["aria-label"]
        assert "width" not in root.attrib
        assert "var(--cut)" in svg
        assert "var(--compressed)" in svg
        assert "#01020" not in svg
    assert "var(--cut)" not in latency_chart([rows[1]])


def test_the_chart_by_layer_has_a_line_for_each_age() -> None:
    layers = ((1.0, 0.9, None), (1.0, 0.8, 0.7))
    svg = fidelity_chart(Fidelity((0, 1, 3), (2, 2, 1), layers, (1.0, 0.8, 0.7)))
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "1 frame<" in svg and "3 frames<" in svg and "0 frame" not in svg
    assert "#01020" not in svg


def test_labels_at_the_right_end_stay_apart() -> None:
    rng = np.random.default_rng()
    ages = (0, *sorted(rng.choice(np.arange(1, 999), 9, replace=False).tolist()))
    # All lines end at nearly one height, at the top or at the foot of the chart.
    for end in (0.5, 1.0):
        last = (1.0, *(end - 1e-5 * rng.random(9)).tolist())
        svg = fidelity_chart(Fidelity(ages, (1,) * 10, ((1.0, *(0.5,) * 9), last), last))
        place = r'transform="\w+\((?:-?0 )?([\d.]+) ([\d.]+)\)[^>]*>(\d+) frames?<'
        found = re.findall(place, svg)
        assert 2 <= len(found) == MOST_AGES
        assert {int(label) for *_, label in found} >= {ages[1], ages[-1]}
        heights = sorted(float(height) for _, height, _ in found)
        assert min(np.diff(heights)) > 11
        # And clear of the markers, whose right ends are at most here.
        dots = max(float(x) for x in re.findall(r'<use xlink:href="#\w+" x="([\d.]+)"', svg))
        assert min(float(x) for x, *_ in found) > dots + 8


def path_of(svg: str, variable: str) -> np.ndarray:
    """Return the points [N, 2] of the first line that is drawn in a colour."""
    for found in re.finditer(r'<path d="([^"]*)"[^>]*style="([^"]*)"', svg):
        if f"stroke: var(--{variable})" in found[2]:
            numbers = re.findall(r"-?[\d.]+", found[1])
            return np.array(numbers, np.float64).reshape(-1, 2)
    raise AssertionError(f"no line in {variable}")


@pytest.mark.parametrize("chart", [latency_chart, cosine_chart])
def test_a_long_run_is_drawn_by_means_of_frames_in_a_row(chart: object) -> None:
    """Means of pairs are all the same, though each frame is another: the line is flat."""
    rng = np.random.default_rng()
    rows = []
    for pair in range(MOST_POINTS):
        shift = rng.uniform(0.01, 0.1)
        for sign in (1, -1):
            rows.append(
                replace(
                    ORDINARY,
                    index=len(rows),
                    time=len(rows) / 30,
                    dense_ms=10 + sign * shift,
                    compressed_ms=5 + sign * shift,
                    cosine=0.8 + sign * shift,
                    refreshed=pair % 4 == 0,
                    scene_cut=pair % 3 == 0,
                )
            )
    svg = chart(rows)
    line = path_of(svg, "compressed")
    assert len(line) <= MOST_POINTS
    assert np.ptp(line[:, 0]) > 500
    assert np.ptp(line[:, 1]) < 0.01
    # One of the frames on its own is not flat, and is drawn frame by frame.
    short = path_of(chart(rows[: MOST_POINTS - 1]), "compressed")
    assert np.ptp(short[:, 1]) > 0.01


def test_an_hour_of_video_makes_a_small_page(streamed: tuple[StreamRun, tuple]) -> None:
    run, moments = streamed
    rng = np.random.default_rng()
    rows = [
        replace(ORDINARY, index=i, time=i / 30, refreshed=i % 4 == 0, dense_ms=10 + noise,
                scene_cut=noise > 0.9, cosine=None if noise < 0.01 else 1 - noise / 9)
        for i, noise in enumerate(rng.random(30_000))
    ]  # fmt: skip
    ages = tuple(range(3000))
    fidelity = Fidelity(ages, (1,) * 3000, ((1.0, *rng.random(2999)),) * 2, (1.0,) * 3000)
    words = tuple(f"frame {i}, {i}.png, is left out" for i in range(3000))
    long = replace(run, frames=tuple(rows), fidelity=fidelity, warnings=words)
    text = render(long, moments)
    assert len(text) < len(render(run, moments)) + 200_000
    page = Page(text)
    assert "a point is the mean of 75 frames in a row" in page.text
    assert "a line for some of the numbers of frames" in page.text
    assert "2990 more such lines" in page.text
    assert "mean of" not in Page(render(run, moments)).text
    assert re.search(r"scene cuts at \d+, [^;]* and \d{4} more", page.text)


def test_the_page_is_drawn_as_if_there_were_no_matplotlibrc() -> None:
    rows = [replace(ORDINARY, index=i, time=i / 10, refreshed=i % 4 == 0) for i in range(9)]
    expected = latency_chart(rows)
    odd = {"text.usetex": True, "font.size": 40, "axes.grid": True, "svg.fonttype": "path",
           "figure.dpi": 300, "savefig.bbox": "tight", "lines.marker": "x"}  # fmt: skip
    with matplotlib.rc_context(odd):
        assert latency_chart(rows) == expected
        assert {name: matplotlib.rcParams[name] for name in odd} == odd


@pytest.mark.parametrize("backend", ["module://no_such_notebook.backend", "nonsense", "Qt5Agg"])
def test_a_backend_that_is_not_installed_breaks_nothing(backend: str, tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: 40\n")
    code = (
        "import io, os; from stc_stream.report.drawing import new_figure\n"
        "with new_figure((3, 2), {'svg.hashsalt': 'x'}) as figure:\n"
        "    figure.add_subplot().plot([1, 2])\n"
        "    figure.savefig(out := io.StringIO(), format='svg', metadata={'Date': None})\n"
        "print(os.environ.get('MPLBACKEND'), hash(out.getvalue()))\n"
    )
    found = []
    for folder, chosen in ((tmp_path, {"MPLBACKEND": backend}), (tmp_path.parent, {})):
        environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder,
            env={**environment, "PYTHONHASHSEED": "1", **chosen},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.split())
    assert [each[0] for each in found] == [backend, "None"]
    assert found[0][1] == found[1][1]


def test_an_option_in_the_heading_stays_on_one_line(streamed: tuple[StreamRun, tuple]) -> None:
    slower = replace(ORDINARY, compressed_ms=12.0)
    run = some_run(streamed, slower, slower)
    text = render(run, streamed[1])
    heading = re.search("<h1>(.*?)</h1>", text)
    assert heading is not None
    options = re.findall('<span class="option">(.*?)</span>', heading[1])
    assert options == ["--refresh-interval 8", "--update-ratio 0.12"]
    assert re.search(r"\.option \{ white-space: nowrap; \}", text)
    assert re.sub("<.*?>", "", heading[1]) == verdict(run)


def test_what_scrolls_can_be_reached_with_the_keyboard(streamed: tuple[StreamRun, tuple]) -> None:
    page = Page(render(*streamed))
    scrolls = [a for _, a in page.tags if {"chart", "scroll"} & set((a.get("class") or "").split())]
    assert len(scrolls) == 4
    headings = {attributes["id"] for attributes in page.all("h2")}
    for attributes in scrolls:
        assert attributes["tabindex"] == "0"
        assert attributes["role"] == "region"
        assert attributes["aria-labelledby"] in headings


def test_what_would_act_on_a_terminal_is_written_out_on_the_page(
    streamed: tuple[StreamRun, tuple],
) -> None:
    name = "a\x1b[31mb\nc\u202ed.mp4"
    text = render(replace(streamed[0], source=name, warnings=("x\x07y",)), streamed[1])
    assert not {"\x1b", "\u202e", "\x07"} & set(text)
    assert r"a\x1b[31mb\nc\u202ed.mp4" in Page(text).text


def test_without_selective_frames_nothing_is_said_of_them(
    streamed: tuple[StreamRun, tuple],
) -> None:
    row = replace(ORDINARY, refreshed=True, age=0, cosine=1.0, similarity=None)
    whole = Fidelity((0,), (2,), ((1.0,), (1.0,)), (1.0,))
    run = some_run(streamed, row, row, fidelity=whole)
    table = str_of(summary_table(run))
    assert "selective" not in table
    assert "not a number" not in table
    # Where there were some, and no number came of them, that is said.
    broken = replace(ORDINARY, cosine=None, cosine_min=None)
    assert "not a number" in str_of(summary_table(some_run(streamed, broken)))


def test_the_page_shows_closeness_by_layer_where_frames_were_selective(
    streamed: tuple[StreamRun, tuple],
) -> None:
    run, moments = streamed
    words = "Closeness by layer"
    assert words in Page(render(run, moments)).text
    whole = Fidelity((0,), (9,), ((1.0,), (1.0,)), (1.0,))
    assert words not in Page(render(replace(run, fidelity=whole), moments)).text
    rows = [line for line in str_of(summary_table(run)).splitlines() if "after its refresh" in line]
    assert [line.split()[1] for line in rows] == ["1", "2", "3"]


def test_one_slow_frame_does_not_flatten_the_chart() -> None:
    rows = [replace(ORDINARY, index=i, time=i / 10) for i in range(60)]
    rows[7] = replace(rows[7], dense_ms=4000.0)
    assert "1 frame slower than the chart is high (4000 ms)" in latency_chart(rows)


def test_gallery_picks_the_telling_frames_and_holds_few() -> None:
    gallery = Gallery()
    view = FrameView(np.zeros((1600, 8, 3), np.uint8), (1, 1), np.ones((1, 1), np.float32),
                     np.ones((1, 1), np.bool_), None)  # fmt: skip
    for i in range(200):
        row = replace(ORDINARY, index=i, refreshed=i % 4 == 0, motion=0.01 + i * 1e-5, moving=0.9)
        if i == 0:
            row = replace(row, motion=None, moving=None)
        if i == 50:
            row = replace(row, scene_cut=True, motion=0.5, cosine=0.1)
        if i == 51:
            row = replace(row, motion=0.4, cosine=0.05)
        if i == 101:
            row = replace(row, motion=0.3, moving=0.2)
        if i == 150:
            row = replace(row, cosine=0.5)
        gallery.offer(FrameResult(row, view))
    moments = {moment.title: moment.result for moment in gallery.moments()}
    assert moments["A refresh: all is computed"].numbers.index == 0
    assert moments["Scene cut"].numbers.index == 50
    assert moments["Part of the picture moves"].numbers.index == 101
    assert moments["Furthest from dense"].numbers.index == 150
    indices = [result.numbers.index for result in moments.values()]
    # 51 only shows the cut again.
    assert 51 not in indices
    assert len(set(indices)) == len(indices) <= 6
    assert all(max(result.view.image.shape) <= 768 for result in moments.values())


def test_the_verdict_is_honest(streamed: tuple[StreamRun, tuple]) -> None:
    saved = some_run(streamed, ORDINARY, ORDINARY)
    assert verdict(saved) == "STC saved 50% of ViT time on this machine."
    slower = replace(ORDINARY, compressed_ms=12.0)
    lost = verdict(some_run(streamed, slower, slower))
    assert lost.startswith("STC lost: ViT time grew by 20% on this machine; try ")
    assert "--refresh-interval" in lost
    same = replace(ORDINARY, compressed_ms=10.0)
    assert verdict(some_run(streamed, same)).startswith("STC saved nothing")
    hiccup = [slower, slower, replace(ORDINARY, dense_ms=500.0)]
    assert "but the median frame took longer" in verdict(some_run(streamed, *hiccup))


def test_summary_numbers() -> None:
    rows = [
        replace(ORDINARY, refreshed=True, dense_ms=10.0, compressed_ms=11.0, cosine=1.0),
        replace(ORDINARY, dense_ms=20.0, compressed_ms=4.0, cosine=0.8, cosine_min=0.5),
        replace(ORDINARY, dense_ms=30.0, compressed_ms=6.0, cosine=None, cosine_min=None),
    ]
    summary = summarise(rows, 16)
    assert (summary.frames, summary.refreshes, summary.tokens) == (3, 1, 16)
    assert summary.reduction == pytest.approx(1 - 21 / 60)
    assert summary.dense.median == 20
    assert summary.dense.p95 == pytest.approx(29)
    assert summary.selective is not None
    assert summary.selective.mean == 5
    assert summary.cosine == pytest.approx(0.9)
    assert summary.cosine_selective == pytest.approx(0.8)
    assert (summary.cosine_lowest_frame, summary.cosine_lowest_token) == (0.8, 0.5)
    with pytest.raises(ValueError, match="at least one frame"):
        summarise([], 16)


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, Queue[str]]]:
    """Serve a folder; give its address, and what pages of it post there."""
    posted: Queue[str] = Queue()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *values: object) -> None:
            return None

        def do_POST(self) -> None:
            posted.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", posted
        finally:
            server.shutdown()


@pytest.mark.browser
def test_a_real_browser_shows_it(
    browser: str, streamed: tuple[StreamRun, tuple], tmp_path: Path
) -> None:
    run, moments = streamed
    page = write_report(run, moments, tmp_path / "report")
    # The page is asked itself, from a second one around it, how it came out.
    (page.parent / "probe.html").write_text(
        """<iframe id="f" src="index.html" style="width:1280px;height:3000px"></iframe>
        <script>
        document.getElementById('f').onload = async () => {
          const d = document.getElementById('f').contentDocument;
          const images = [...d.images];
          await Promise.all(images.map(i => i.decode().catch(() => null)));
          const wide = d.documentElement;
          const seen = e => e.getBoundingClientRect().width > 100;
          const body = JSON.stringify({
            images: images.length, shown: images.filter(i => i.naturalWidth > 0 && seen(i)).length,
            charts: [...d.querySelectorAll('.chart svg')].filter(seen).length,
            overflow: wide.scrollWidth - wide.clientWidth, heading: d.querySelector('h1').innerText,
          });
          fetch('result', {method: 'POST', body});
        };
        </script>""",
        encoding="utf-8",
    )
    options = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--hide-scrollbars", "--window-size=1280,3000", f"--user-data-dir={tmp_path / 'profile'}",
    ]  # fmt: skip
    # It posts its answer once the page has loaded: no budget of time can end before.
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
    similarity_maps = sum(moment.result.view.similarity is not None for moment in moments)
    assert result["images"] == result["shown"] == len(moments) + similarity_maps
    assert result["charts"] == 3
    assert result["overflow"] <= 0
    assert result["heading"] == verdict(run)

    shot = tmp_path / "shot.png"
    subprocess.run(
        [*options, f"--screenshot={shot}", page.as_uri()],
        capture_output=True, timeout=300, check=True,
    )  # fmt: skip
    pixels = np.asarray(Image.open(shot).convert("RGB"), np.int64)
    assert pixels.shape[:2] == (3000, 1280)
    # The tint and the outlines are there to be seen, and in every third of the page is something.
    orange = (pixels[..., 0] - pixels[..., 2] > 90).mean()
    cyan = (np.abs(pixels - np.array(OUTLINE)).max(-1) < 40).sum()
    assert orange > 0.01
    assert cyan > 1000
    for third in np.array_split(pixels, 3):
        assert third.std() > 5


def test_a_rule_of_ones_own_is_named_by_its_class(streamed: tuple[StreamRun, object]) -> None:
    class KeepLast(ScoreStrategy):
        def score(self, tokens, past):
            return tokens[..., 0], past

    run, moments = streamed
    named = stream_document(run)
    pruner = PrunerConfig(strategy=KeepLast(), keep_ratio=0.25)
    run = replace(run, method=replace(run.method, pruner=pruner))
    document = json.loads(json.dumps(stream_document(run)))
    jsonschema.validate(document, stream_schema())
    settings = {**named["config"]["pruner"], "strategy": "KeepLast"}
    assert document["config"]["pruner"] == settings
    assert "KeepLast, 4 tokens a frame" in render(run, moments)
