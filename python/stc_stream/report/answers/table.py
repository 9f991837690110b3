"""The table of a stream with questions, and the one line that says what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.table import Table
from rich.text import Text

from stc_stream.evaluate.answers import STAGES, StageTimes
from stc_stream.report.answers.run import AnswersRun
from stc_stream.report.table import milliseconds
from stc_stream.report.terminal import printable

STAGE_WORDS = {
    "preprocess": "preprocessing",
    "tower": "tower",
    "prune": "pruning",
    "prefill": "prefill",
    "first_token": "first token",
    "later_tokens": "later tokens",
    "other": "other",
}
OF_ANSWERS = ("first_token", "later_tokens")
OF_FRAMES = tuple(stage for stage in STAGES if stage not in OF_ANSWERS)


def verdict(run: AnswersRun) -> str:
    """Return the line that says what was saved of the whole, and by which stages."""
    dense, compressed = run.times
    if not dense.whole:
        return f"Nothing ran both ways: {next(filter(None, run.full), 'no frame was taken in')}"
    saved = 1 - compressed.whole / dense.whole
    way = "the time from frames to answers"
    parts = [
        f"{STAGE_WORDS[stage]} {share:.0%}"
        for stage in STAGES
        if abs(share := compressed.saved_of_whole(stage, dense)) >= 0.005
    ]
    by = f": {', '.join(parts)}" if parts else ""
    if saved >= 0.005:
        return f"{run.title} saved {saved:.0%} of {way} on this machine{by}."
    if saved > -0.005:
        return f"{run.title} saved nothing of {way} on this machine{by}."
    return f"{run.title} lost: {way} grew by {-saved:.0%} on this machine{by}."


def answers_table(run: AnswersRun) -> Table:
    """Return each stage's latency and share, and what is held, at most 80 columns wide."""
    frames, answers = run.compared_frames, run.compared_questions
    words = f"{frames} frame{_s(frames)} and {answers} answer{_s(answers)}"
    title = Text(f"{printable(run.source)}: {words}, both ways", style="table.title")
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading in ("dense", "share", run.title, "share", "saved", "of whole"):
        table.add_column(heading, justify="right")
    dense, compressed = run.times
    for count, unit, stages in ((frames, "a frame", OF_FRAMES), (answers, "an answer", OF_ANSWERS)):
        if count:
            table.add_row(f"ms {unit}", style="italic")
            for stage in stages:
                table.add_row(STAGE_WORDS[stage], *_stage(stage, dense, compressed, count))
    if answers:
        table.add_row("whole answer", *_answers(run), style="dim")
    if dense.whole:
        saved = percent(1 - compressed.whole / dense.whole)
        table.add_section()
        cells = (milliseconds(1e3 * dense.whole), "100%", milliseconds(1e3 * compressed.whole))
        table.add_row("whole, ms", *cells, "100%", saved, saved, style="bold")
    _add_memory(table, run)
    return table


def _stage(stage: str, dense: StageTimes, compressed: StageTimes, count: int) -> list[str]:
    """Return the cells of a stage, whose times are a mean over `count`."""
    latency = [
        cell
        for times in (dense, compressed)
        for cell in (milliseconds(1e3 * times.seconds[stage] / count), f"{times.share(stage):.1%}")
    ]
    of_whole = f"{compressed.saved_of_whole(stage, dense):.1%}"
    return [*latency, percent(compressed.saved(stage, dense)), of_whole]


def _answers(run: AnswersRun) -> list[str]:
    seconds = [sum(times.seconds[stage] for stage in OF_ANSWERS) for times in run.times]
    latency = [
        cell
        for times, whole in zip(run.times, seconds, strict=True)
        for cell in (
            milliseconds(1e3 * whole / run.compared_questions),
            f"{sum(map(times.share, OF_ANSWERS)):.1%}",
        )
    ]
    return [*latency, percent(1 - seconds[1] / seconds[0] if seconds[0] else None), ""]


def live_words(run: AnswersRun) -> str | None:
    """Say what became of the frames of a live source; None: it is none."""
    live = run.live
    if live is None:
        return None
    skipped = f"{live.skipped} of {live.came} frames that came were skipped"
    return f"live source: {skipped}; at most {live.most_waiting} waited, with room for {live.room}"


def _add_memory(table: Table, run: AnswersRun) -> None:
    stats = run.compared_stats
    if stats is None:
        return
    dense, compressed = stats
    rows: Sequence[tuple[str, tuple[int, int], Callable[[int], str]]] = [
        ("tokens of frames", run.kept, str),
        ("tokens in cache", (dense.tokens_held, compressed.tokens_held), str),
        ("cache, on device", (dense.bytes_device, compressed.bytes_device), size_words),
        ("cache, on host", (dense.bytes_host, compressed.bytes_host), size_words),
    ]
    table.add_section()
    for words, (before, after), shown in rows:
        if before or after:
            saved = percent(1 - after / before if before else None)
            table.add_row(words, shown(before), "", shown(after), "", saved, "")
    if compressed.frames_forgotten:
        forgotten = (str(dense.frames_forgotten), str(compressed.frames_forgotten))
        table.add_row("frames forgotten", forgotten[0], "", forgotten[1])


def size_words(size: int) -> str:
    """Return bytes in words: 1.53 MiB."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            number = size / unit
            return f"{number:.0f} {name}" if number >= 100 else f"{number:.3g} {name}"
    return f"{size} B"


def percent(share: float | None) -> str:
    """Return a share in percent, or a dash."""
    return "—" if share is None else f"{share:.0%}"


def _s(count: int) -> str:
    return "s" if count != 1 else ""
