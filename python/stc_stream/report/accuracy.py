"""What methods come to on a task: the table, and the rows of the JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from stc_stream.evaluate.accuracy import FailedVideo, MethodScore, RunSettings
from stc_stream.evaluate.accuracy.scores import Estimate
from stc_stream.evaluate.tasks import Task
from stc_stream.report.terminal import printable
from stc_stream.report.versions import versions

_MOST_GROUPS = 12


@dataclass(frozen=True)
class AccuracyRun:
    """A run as far as it came.

    Attributes:
        settings: what it was made with.
        task: whose questions.
        scores: of each method.
        failed: videos that no question was asked about.
        complete: whether all methods are through with all videos.
    """

    settings: RunSettings
    task: Task
    scores: tuple[MethodScore, ...]
    failed: tuple[FailedVideo, ...]
    complete: bool


def accuracy_rows(run: AccuracyRun) -> list[dict[str, Any]]:
    """Return a row a method, as `json.dumps` takes them; shares and accuracies are 0 to 1."""
    lost = {each.video for each in run.failed}
    common = {
        "task": run.task.name,
        "complete": run.complete,
        "videos_failed": len(run.failed),
        "questions_failed": sum(item.video in lost for item in run.task.items),
        "notes": list(run.task.notes),
        "settings": asdict(run.settings),
        "versions": dict(versions()),
    }
    return [{**_row(score), **common} for score in run.scores]


def accuracy_table(run: AccuracyRun) -> Table:
    """Return accuracy, and what it took, a line a method."""
    first = run.scores[0]
    words = f"{printable(run.task.name)}: {first.questions} questions about {first.videos} videos"
    table = Table(title=Text(words, style="table.title"), title_justify="left")
    strict = any(score.strict != score.accuracy for score in run.scores)
    table.add_column("")
    headings = [
        "right, %",
        *(["strictly"] if strict else []),
        "to dense",
        "tower",
        "tokens",
        "held",
    ]
    for heading in (*headings, "tower ms", "prefill ms", "answer ms"):
        table.add_column(heading, justify="right")
    for score in run.scores:
        cells = [_percent(score.accuracy)]
        if strict:
            cells.append(f"{100 * score.strict.value:.1f}")
        spent = [_ms(score.milliseconds.get(stage)) for stage in ("tower", "prefill", "answer")]
        table.add_row(
            printable(score.method),
            *cells,
            "" if score.method == "dense" else _difference(score.difference),
            f"{score.tower_share:.0%}",
            f"{score.tokens_per_frame:.1f}",
            f"{score.tokens_held:.0f}",
            *spent,
        )
    return table


def groups_table(run: AccuracyRun) -> Table | None:
    """Return accuracy by groups of questions; None: there is one group, or more than fit."""
    groups = run.scores[0].groups
    if not 2 <= len(groups) <= _MOST_GROUPS:
        return None
    table = Table(title="right, %, by groups of questions", title_justify="left")
    table.add_column("")
    for name, (asked, _) in groups.items():
        table.add_column(f"{printable(name)} ({asked})", justify="right")
    for score in run.scores:
        shares = [f"{100 * score.groups[name][1]:.1f}" for name in groups]
        table.add_row(printable(score.method), *shares)
    return table


def accuracy_notes(run: AccuracyRun) -> list[str]:
    """Return what must be known beside the table, a line each."""
    notes = [
        "right: with its 95% interval, over videos drawn anew; to dense: the same of the "
        "difference on the same questions. tower: multiplications, of the dense tower's; tokens: "
        "a frame, to the language model; held: tokens that it remembered when asked; ms: a frame, "
        "and an answer.",
        *run.task.notes,
    ]
    unanswered = sum(score.unanswered for score in run.scores)
    if unanswered:
        notes.append(
            f"{unanswered} questions did not fit into the memory, and count as answered wrongly."
        )
    return notes


def failed_words(run: AccuracyRun) -> str | None:
    """Return the line about videos that were not asked about; None: there were none."""
    if not run.failed:
        return None
    lost = {each.video for each in run.failed}
    questions = sum(item.video in lost for item in run.task.items)
    first = run.failed[0]
    return (
        f"{questions} questions about {len(run.failed)} videos were not asked and are not "
        f"counted, as these are missing or damaged: {first.video} ({first.reason})"
        f"{', …' if len(run.failed) > 1 else ''}"
    )


def _row(score: MethodScore) -> dict[str, Any]:
    groups = {
        name: {"questions": asked, "accuracy": share}
        for name, (asked, share) in score.groups.items()
    }
    return {
        "method": score.method,
        **_estimate("accuracy", score.accuracy),
        **_estimate("strict_accuracy", score.strict),
        **_estimate("difference", score.difference),
        "questions": score.questions,
        "videos": score.videos,
        "unanswered": score.unanswered,
        "groups": groups,
        "tower_share": score.tower_share,
        "tokens_of_frame": score.tokens_of_frame,
        "tokens_per_frame": score.tokens_per_frame,
        "tokens_held": score.tokens_held,
        "milliseconds": dict(score.milliseconds),
        "shares": dict(score.shares),
    }


def _estimate(name: str, estimate: Estimate) -> dict[str, float | None]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _percent(estimate: Estimate) -> str:
    words = f"{100 * estimate.value:.1f}"
    if estimate.low is None or estimate.high is None:
        return words
    return f"{words} ({100 * estimate.low:.1f}–{100 * estimate.high:.1f})"


def _difference(estimate: Estimate) -> str:
    words = f"{100 * estimate.value:+.1f}"
    if estimate.low is None or estimate.high is None:
        return words
    return f"{words} ({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f})"


def _ms(value: float | None) -> str:
    return "—" if value is None else f"{value:.1f}"
