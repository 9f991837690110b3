"""The report: one HTML file with all its pictures inside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from markupsafe import Markup, escape

import stc_kernels
from stc_stream.report.charts import (
    MOST_AGES,
    cosine_chart,
    fidelity_chart,
    frames_a_point,
    latency_chart,
)
from stc_stream.report.gallery import Moment
from stc_stream.report.pictures import (
    OUTLINE,
    TINT,
    colour_bar,
    inline,
    overlay,
    similarity_map,
    size,
)
from stc_stream.report.run import StreamRun
from stc_stream.report.table import verdict
from stc_stream.report.target import PAGE, write_whole
from stc_stream.report.templates import template
from stc_stream.report.versions import cores, processor, versions

_OPTION = re.compile(r"--\w[\w-]*( [\d.]*\d)?")
_MOST_WARNINGS = 10
_MOST_CUTS = 20


def write_report(run: StreamRun, moments: Sequence[Moment], directory: Path) -> Path:
    """Write a report of `run` with pictures of `moments`, and return the page's path.

    Raises:
        OSError: it cannot be written; a page that was there before stays as it was.
    """
    page = directory / PAGE
    text = render(run, moments)
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(page, text)
    return page


def render(run: StreamRun, moments: Sequence[Moment]) -> str:
    """Return the page as HTML: no script, and nothing fetched from anywhere."""
    maps = [m.result.view.similarity for m in moments if m.result.view.similarity is not None]
    lowest = min((float(similarity.min()) for similarity in maps), default=0.0)
    tower = run.tower
    return template("report.html").render(
        run=run,
        summary=run.summary,
        tower=tower,
        verdict=_unbroken(verdict(run)),
        pictures=[_picture(moment, lowest) for moment in moments],
        lowest=lowest,
        colour_bar=colour_bar(),
        tint=_css(TINT),
        outline=_css(OUTLINE),
        most_warnings=_MOST_WARNINGS,
        most_cuts=_MOST_CUTS,
        frames_a_point=frames_a_point(len(run.frames)),
        latency_chart=Markup(latency_chart(run.frames)),
        cosine_chart=Markup(cosine_chart(run.frames)),
        fidelity_chart=_fidelity_chart(run),
        some_ages=run.fidelity is not None and len(run.fidelity.ages) > MOST_AGES + 1,
        processor=processor(tower.device),
        cores=cores(),
        threads=torch.get_num_threads(),
        implementation=stc_kernels.implementation("select_dynamic", tower.device),
        versions=versions(),
        dtype=str(tower.dtype).removeprefix("torch."),
    )


def _unbroken(text: str) -> Markup:
    """Return a text as HTML in which no line ends within an option and its value."""
    return Markup(_OPTION.sub(r'<span class="option">\g<0></span>', str(escape(text))))


def _fidelity_chart(run: StreamRun) -> Markup | None:
    if run.fidelity is None or run.fidelity.ages[-1] == 0:
        return None
    return Markup(fidelity_chart(run.fidelity))


@dataclass(frozen=True)
class _Picture:
    title: str
    index: int
    time: float
    refreshed: bool
    share: float
    cosine: float | None
    similarity: float | None
    overlay: str
    map: str | None
    ratio: str
    alt: str
    map_alt: str


def _picture(moment: Moment, lowest: float) -> _Picture:
    numbers, view = moment.result.numbers, moment.result.view
    tokens = view.grid[0] * view.grid[1]
    share = numbers.tokens_recomputed / tokens
    height, width = view.image.shape[:2]
    return _Picture(
        title=moment.title,
        index=numbers.index,
        time=numbers.time,
        refreshed=numbers.refreshed,
        share=share,
        cosine=numbers.cosine,
        similarity=numbers.similarity,
        overlay=inline(overlay(view), "jpeg"),
        map=None
        if view.similarity is None
        else inline(similarity_map(view.similarity, lowest, size(view)), "png"),
        ratio=f"{width} / {height}",
        alt=f"Frame {numbers.index} at {numbers.time:.2f} s: {share:.0%} of its patches are tinted "
        f"as recomputed, {numbers.tokens_kept} of {tokens} are outlined as kept",
        map_alt=f"Similarity map of frame {numbers.index}",
    )


def _css(colour: tuple[int, int, int]) -> str:
    return f"rgb({colour[0]} {colour[1]} {colour[2]})"
