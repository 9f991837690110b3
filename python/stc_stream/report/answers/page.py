"""The report of a stream with questions: one HTML file with all its pictures inside."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from markupsafe import Markup

import stc_kernels
from stc_stream.evaluate.answers import STAGES
from stc_stream.report.answers.album import Album, Thumbnail
from stc_stream.report.answers.charts import cache_chart
from stc_stream.report.answers.run import AnswersRun, AskedQuestion
from stc_stream.report.answers.table import (
    OF_ANSWERS,
    OF_FRAMES,
    STAGE_WORDS,
    live_words,
    percent,
    size_words,
    verdict,
)
from stc_stream.report.table import milliseconds
from stc_stream.report.target import PAGE, write_whole
from stc_stream.report.templates import template
from stc_stream.report.terminal import some
from stc_stream.report.versions import cores, processor, versions

_PICTURES = 10
_RETRIEVED = 12
_MOST_WARNINGS = 10


def write_answers_report(run: AnswersRun, album: Album, directory: Path) -> Path:
    """Write a report of `run` with pictures of `album`, and return the page's path.

    Raises:
        OSError: it cannot be written; a page that was there before stays as it was.
    """
    page = directory / PAGE
    text = render(run, album)
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(page, text)
    return page


def render(run: AnswersRun, album: Album) -> str:
    """Return the page as HTML: no script, and nothing fetched from anywhere."""
    dense, compressed = run.times
    stats = run.compared_stats
    return template("answers.html").render(
        run=run,
        verdict=verdict(run),
        full=[
            (name, words)
            for name, words in zip(("dense", run.title), run.full, strict=True)
            if words
        ],
        live=live_words(run),
        saved=1 - compressed.whole / dense.whole if dense.whole else None,
        whole=[milliseconds(1e3 * times.whole) for times in run.times],
        first_token=[_mean(run, place, ("first_token",)) for place in (0, 1)],
        answer=[_mean(run, place, OF_ANSWERS) for place in (0, 1)],
        stats=stats,
        size=size_words,
        bars=_bars(run),
        stages=[*_rows(run, OF_FRAMES, "frame"), *_rows(run, OF_ANSWERS, "answer")],
        frames=_timeline(run, album),
        marks=[_place(run, question.frames) for question in run.asked],
        questions=[_question(run, number, album) for number in range(len(run.asked))],
        cache_chart=Markup(cache_chart(run)) if run.chunks else None,
        most_warnings=_MOST_WARNINGS,
        processor=processor(run.model.device),
        cores=cores(),
        threads=torch.get_num_threads(),
        implementation=stc_kernels.implementation("select_dynamic", run.model.device),
        versions=versions(),
        dtype=str(run.model.dtype).removeprefix("torch."),
    )


@dataclass(frozen=True)
class _Part:
    """A stage in a bar: its width in percent of the dense whole."""

    stage: str
    words: str
    width: float
    share: str


def _bars(run: AnswersRun) -> list[list[_Part]]:
    dense = run.times[0].whole
    longest = max(times.whole for times in run.times)
    return [
        [
            _Part(
                stage,
                STAGE_WORDS[stage],
                100 * times.seconds[stage] / longest,
                f"{times.share(stage):.0%}",
            )
            for stage in STAGES
        ]
        for times in run.times
        if dense
    ]


@dataclass(frozen=True)
class _Row:
    """A stage in the table."""

    stage: str
    words: str
    dense: str
    dense_share: str
    compressed: str
    compressed_share: str
    saved: str
    of_whole: str


def _rows(run: AnswersRun, stages: tuple[str, ...], unit: str) -> list[_Row]:
    count = run.compared_frames if unit == "frame" else run.compared_questions
    dense, compressed = run.times
    article = "an" if unit == "answer" else "a"
    return [
        _Row(
            stage,
            f"{STAGE_WORDS[stage]}, {article} {unit}",
            milliseconds(1e3 * dense.seconds[stage] / count),
            f"{dense.share(stage):.1%}",
            milliseconds(1e3 * compressed.seconds[stage] / count),
            f"{compressed.share(stage):.1%}",
            percent(compressed.saved(stage, dense)),
            f"{compressed.saved_of_whole(stage, dense):.1%}",
        )
        for stage in stages
        if count
    ]


def _mean(run: AnswersRun, place: int, stages: tuple[str, ...]) -> str:
    count = run.compared_questions
    seconds = sum(run.times[place].seconds[stage] for stage in stages)
    return milliseconds(1e3 * seconds / count if count else None)


@dataclass(frozen=True)
class _Picture:
    """A frame in a row of pictures.

    Attributes:
        index, time: of the frame, in the source.
        layers: how many layers brought it back; None: it was not for that.
        picture: of it, or of the nearest frame that has one.
        alt: what it shows, in words.
    """

    index: int
    time: float
    layers: int | None
    picture: Thumbnail
    alt: str


def _picture(run: AnswersRun, album: Album, number: int, layers: int | None = None) -> _Picture:
    index, time = run.places[number]
    found = album.nearest(number)
    alt = f"Frame {index} at {time:.2f} s"
    if found.number != number:
        alt = f"Frame {run.places[found.number][0]}, near {alt.lower()}"
    return _Picture(index, time, layers, found, alt)


def _timeline(run: AnswersRun, album: Album) -> list[_Picture]:
    return [_picture(run, album, number) for number in some(run.frames, _PICTURES)]


def _place(run: AnswersRun, frames: int) -> float:
    """Return where on the timeline so many frames have been taken in, in percent."""
    return 100 * frames / run.frames if run.frames else 100.0


@dataclass(frozen=True)
class _Answer:
    """An answer on the page."""

    method: str
    text: str
    note: str


@dataclass(frozen=True)
class _Question:
    """A question on the page, with the frames that were brought back for its answer."""

    text: str
    when: str
    answers: list[_Answer]
    same: bool
    retrieved: list[_Picture]
    retrieved_frames: int
    layers: int


def _question(run: AnswersRun, number: int, album: Album) -> _Question:
    asked = run.asked[number]
    when = "before the first frame"
    if asked.time is not None:
        when = f"at {asked.time:.2f} s, behind {asked.frames} frame{'s' * (asked.frames != 1)}"
    texts = [own.text for own in asked.runs if own is not None]
    by_layer = asked.runs[1].retrieved if asked.runs[1] is not None else ()
    counts = Counter(frame for layer in by_layer for frame in layer)
    most = sorted(frame for frame, _ in counts.most_common(_RETRIEVED))
    return _Question(
        text=asked.question.text,
        when=when,
        answers=_answers(run, asked),
        same=asked.comparable and texts[0] == texts[1],
        retrieved=[_picture(run, album, frame, counts[frame]) for frame in most],
        retrieved_frames=len(counts),
        layers=len(by_layer),
    )


def _answers(run: AnswersRun, asked: AskedQuestion) -> list[_Answer]:
    found = []
    for place, own in enumerate(asked.runs):
        name = "dense" if place == 0 else run.title
        if own is None:
            found.append(_Answer(name, "", "not asked"))
            continue
        first, later = (own.seconds.get(stage, 0.0) for stage in OF_ANSWERS)
        note = (
            f"{own.tokens} token{'s' * (own.tokens != 1)}; the first after "
            f"{milliseconds(1e3 * first)} ms, the last after {milliseconds(1e3 * (first + later))} "
            "ms"
        )
        ends = {"stopped": "; stopped", "limit": "; cut off", "end": ""}
        note = "there was no room for it" if own.ending == "no_room" else note + ends[own.ending]
        found.append(_Answer(name, own.text, note))
    return found
