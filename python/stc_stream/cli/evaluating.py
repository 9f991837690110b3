"""A run of `stc eval`: what is missing is run, kept and scored."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stc_stream.cli.messages import fail, say, why
from stc_stream.cli.needs import TOO_LARGE, memory_errors
from stc_stream.cli.outputs import Outputs
from stc_stream.cli.terminal import progress_bar
from stc_stream.interrupts import Interrupts
from stc_stream.report.terminal import print_table

if TYPE_CHECKING:
    from rich.console import Console

    from stc_stream.evaluate.accuracy import FailedVideo, RunFolder, RunSettings, VideoAnswers
    from stc_stream.evaluate.method import Method
    from stc_stream.evaluate.tasks import Task
    from stc_stream.report.accuracy import AccuracyRun
    from stc_stream.session.load import VideoLlm

BASELINE = "dense"
"""The method that all others are compared with."""


def scored_again(path: Path) -> AccuracyRun:
    from stc_stream.evaluate.accuracy import FailedVideo, VideoAnswers

    folder = open_folder(path, None)
    assert folder is not None
    settings = folder.settings
    task = _read_again(settings)
    answered = [run for run in folder.found if isinstance(run, VideoAnswers)]
    names = list(dict.fromkeys(run.method for run in answered))
    if BASELINE not in names:
        fail(f"{path} holds no answers of {BASELINE}: run it first")
    failed = {run.video for run in folder.found if isinstance(run, FailedVideo)}
    wanted = {item.video for item in task.items} - failed
    complete = all({r.video for r in answered if r.method == name} >= wanted for name in names)
    return _scored(settings, task, names, folder.found, complete, folder)


class EvaluationRun:
    """A run on its way: what there is, and what is missing."""

    def __init__(
        self,
        llm: VideoLlm,
        task: Task,
        methods: Sequence[Method],
        settings: RunSettings,
        folder: RunFolder | None,
    ) -> None:
        self._llm, self._task, self._methods = llm, task, methods
        self._settings, self._folder = settings, folder
        self._found: list[VideoAnswers | FailedVideo] = [] if folder is None else [*folder.found]

    def finish(self, console: Console, interrupts: Interrupts) -> AccuracyRun:
        """Run what is missing, until it is done or stopped."""
        from stc_stream.evaluate.accuracy import VideoAnswers

        done = {(each.video, each.method) for each in self._found if isinstance(each, VideoAnswers)}
        names = [method.name for method in self._methods]
        videos = dict.fromkeys(item.video for item in self._task.items)
        missing = {video: [name for name in names if (video, name) not in done] for video in videos}
        complete = False
        try:
            if any(missing.values()):
                self._go_on({video: left for video, left in missing.items() if left}, console)
            complete = True
            interrupts.finish()
        except KeyboardInterrupt:
            if not self._found:
                raise
        except memory_errors():
            fail(TOO_LARGE)
        return _scored(self._settings, self._task, names, self._found, complete, self._folder)

    def _go_on(self, missing: dict[str, list[str]], console: Console) -> None:
        from stc_stream.evaluate.accuracy import FailedVideo, TaskRunner
        from stc_stream.video import VideoError

        total = sum(map(len, missing.values()))
        bar = progress_bar(console)
        needed = {name for left in missing.values() for name in left}
        methods = [method for method in self._methods if method.name in needed]
        llm, settings = self._llm, self._settings
        try:
            opened = TaskRunner(
                llm.model,
                llm.processor,
                self._task,
                methods,
                positions=settings.positions,
                chunk=settings.chunk,
            )
        except (TypeError, ValueError) as error:
            # A method that this model's tower can't run.
            fail(str(error))
        with opened as runner, bar:
            shown = bar.add_task("videos × methods", total=total)
            for video, left in missing.items():
                try:
                    for answers in runner.run(video, left):
                        self._keep(answers)
                        bar.advance(shown)
                except VideoError as error:
                    self._keep(FailedVideo(video, str(error)))
                    bar.advance(shown, len(left))

    def _keep(self, run: VideoAnswers | FailedVideo) -> None:
        self._found.append(run)
        if self._folder is None:
            return
        try:
            self._folder.add(run)
        except OSError as error:
            fail(f"--run {self._folder.path} cannot be written ({why(error)}): make room")


def report(run: AccuracyRun, outputs: Outputs[AccuracyRun]) -> None:
    from stc_stream.report.accuracy import (
        accuracy_notes,
        accuracy_table,
        failed_words,
        groups_table,
    )

    print_table(outputs.console, accuracy_table(run))
    groups = groups_table(run)
    if groups is not None:
        print_table(outputs.console, groups)
    for note in accuracy_notes(run):
        outputs.console.print(note, style="dim", highlight=False, soft_wrap=True)
    sys.stdout.flush()
    failed = failed_words(run)
    if failed is not None:
        say(f"warning: {failed}")
    if not run.complete:
        say("warning: stopped; this is of the videos that all methods are through with")
    outputs.write(run)


def rows_of(run: AccuracyRun) -> Sequence[Mapping[str, Any]]:
    from stc_stream.report.accuracy import accuracy_rows

    return accuracy_rows(run)


def open_folder(folder: Path | None, settings: RunSettings | None) -> RunFolder | None:
    from stc_stream.evaluate.accuracy import RunFolder

    if folder is None:
        return None
    try:
        return RunFolder(folder, settings)
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(f"no run can be kept in {folder} ({why(error)}): choose another --run")


def _read_again(settings: RunSettings) -> Task:
    """Return a task whose videos are not needed any more."""
    from stc_stream.evaluate.tasks import TaskError, read_task

    data, videos = (
        None if folder is None else Path(folder) for folder in (settings.data, settings.videos)
    )
    try:
        return read_task(settings.task, data, videos, settings.fps, settings.limit)
    except (TaskError, ModuleNotFoundError) as error:
        fail(str(error))


def _scored(
    settings: RunSettings,
    task: Task,
    names: Sequence[str],
    found: Sequence[VideoAnswers | FailedVideo],
    complete: bool,
    folder: RunFolder | None,
) -> AccuracyRun:
    from stc_stream.evaluate.accuracy import FailedVideo, VideoAnswers, score_methods
    from stc_stream.report.accuracy import AccuracyRun, accuracy_rows

    answered = [run for run in found if isinstance(run, VideoAnswers)]
    # What failed is tried again when a run goes on.
    seen = {run.video for run in answered}
    failed = {
        run.video: run for run in found if isinstance(run, FailedVideo) and run.video not in seen
    }
    run = AccuracyRun(
        settings,
        task,
        score_methods(task, names, answered, BASELINE),
        tuple(failed.values()),
        complete,
    )
    if not run.scores:
        if complete and run.failed:
            fail(f"no video could be read: {run.failed[0].reason}")
        raise KeyboardInterrupt
    if folder is not None:
        folder.write_scores(accuracy_rows(run))
    return run
