"""`stc eval`: answers kept against time saved, on a task's questions."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from stc_stream.cli.messages import as_option, fail, say, why
from stc_stream.cli.needs import NEEDED, TOO_LARGE, kernels, memory_errors, require_modules
from stc_stream.cli.options import (
    CONTEXT,
    FiniteRange,
    as_name,
    as_path,
    device_option,
    dtype_option,
    json_option,
    model_option,
)
from stc_stream.cli.outputs import Outputs, json_file
from stc_stream.cli.session import Session
from stc_stream.cli.terminal import progress_bar
from stc_stream.interrupts import Interrupts
from stc_stream.report.terminal import print_table, printable

if TYPE_CHECKING:
    from rich.console import Console

    from stc_stream.evaluate.accuracy import FailedVideo, RunFolder, RunSettings, VideoAnswers
    from stc_stream.evaluate.method import Method
    from stc_stream.evaluate.tasks import Task
    from stc_stream.report.accuracy import AccuracyRun
    from stc_stream.session.load import VideoLlm

_BASELINE = "dense"
_SHARE = 1 / 3
"""Of a frame's tokens, what is kept where nothing is said."""


@click.command("eval", context_settings=CONTEXT, short_help="Answers kept against time saved.")
@model_option(
    "A video LLM: a folder, or a name on the Hugging Face hub.  [default: the small trained model "
    "of this package, where it has one]"
)
@click.option(
    "--task",
    "task_name",
    type=as_name,
    default="small",
    show_default=True,
    metavar="NAME_OR_FILE",
    help="small (made here; small:clips=50), ovo_bench, streaming_bench, video_mme, mlvu, "
    "egoschema, or a file of questions.",
)
@click.option(
    "--method",
    "written",
    type=as_name,
    default="stc,stc-cacher",
    show_default=True,
    metavar="LIST",
    help="Methods with commas between them, settings behind a colon: stc,skip:refresh_interval=2. "
    "dense is run besides.",
)
@click.option(
    "--tokens-per-frame",
    type=click.IntRange(1),
    help="Tokens of a frame that a method keeps which does not say it itself.  [default: a third]",
)
@click.option(
    "--data", type=as_path, metavar="DIR", help="Folder of a benchmark.  [default: its name]"
)
@click.option(
    "--videos", type=as_path, metavar="DIR", help="Folder of the videos.  [default: the task's]"
)
@click.option(
    "--fps",
    type=FiniteRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Take at most N frames of each second of a video file.",
)
@click.option("--limit", type=click.IntRange(1), help="The first N videos alone.  [default: all]")
@click.option(
    "--chunk",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    help="Frames that are fed together.",
)
@click.option(
    "--memory",
    type=as_name,
    metavar="NAME",
    help="What the LLM remembers where a method does not say it: recent:frames=4, window, "
    "retrieval.  [default: everything]",
)
@click.option(
    "--positions",
    type=click.Choice(["kept", "contiguous"]),
    default="kept",
    show_default=True,
    help="contiguous numbers kept tokens without gaps, so that more frames fit into the context.",
)
@click.option(
    "--run",
    "folder",
    type=as_path,
    metavar="DIR",
    help="Keep settings, predictions and scores there; the same command goes on after Ctrl-C.",
)
@click.option(
    "--rescore", type=as_path, metavar="DIR", help="Score the predictions of such a folder again."
)
@device_option
@dtype_option
@json_option
@click.pass_context
def evaluate(
    context: click.Context,
    model: str | None,
    task_name: str,
    written: str,
    tokens_per_frame: int | None,
    data: Path | None,
    videos: Path | None,
    fps: float,
    limit: int | None,
    chunk: int,
    memory: str | None,
    positions: Literal["kept", "contiguous"],
    folder: Path | None,
    rescore: Path | None,
    device: str,
    dtype: str,
    document: Path | None,
) -> None:
    """Ask a video LLM the questions of a task, dense and by other methods.

    The table says how many answers are right, with intervals, and what they took. Ctrl-C stops and
    reports the videos that all methods are through with.
    """
    session: Session = context.obj
    require_modules("stc eval", list(NEEDED))
    kernels()
    outputs: Outputs[AccuracyRun] = Outputs(session.output, json_file(document, _rows))
    if rescore is not None:
        for name in ("folder", "model", "task_name", "written", "limit"):
            if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
                option = {"folder": "run", "task_name": "task", "written": "method"}.get(name, name)
                fail(f"--{option} is not for --rescore, whose folder says it")
        _report(_scored_again(rescore), outputs)
        return
    # What is cheap to check comes before the model is loaded.
    methods = _methods(written, tokens_per_frame, memory)
    task = _task(task_name, data, videos, fps, limit)
    llm = _load(model, device, dtype)
    tokens = llm.read.tokens_per_frame
    if tokens is not None and (tokens_per_frame or 0) > tokens:
        fail(
            f"--tokens-per-frame must be at most {tokens}, the tokens of a frame of {llm.name}, "
            f"but is {tokens_per_frame}"
        )
    from stc_stream.evaluate.accuracy import RunSettings

    settings = RunSettings(
        model=llm.name,
        task=task_name,
        data=None if data is None else str(data),
        videos=None if videos is None else str(videos),
        fps=fps,
        limit=limit,
        chunk=chunk,
        tokens_per_frame=tokens_per_frame,
        memory=memory,
        positions=positions,
        dtype=str(llm.dtype).removeprefix("torch."),
    )
    run = _Run(llm, task, methods, settings, _opened(folder, settings))
    outputs.begin(f"{printable(llm.name)} ({llm.weights}) on {printable(task.name)}, {llm.device}")
    _report(run.finish(outputs.console, session.interrupts), outputs)


class _Run:
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


def _methods(written: str, tokens_per_frame: int | None, memory: str | None) -> list[Method]:
    from stc_stream.evaluate.methods import read_memory, read_method, split_methods

    names = split_methods(written)
    if not names:
        fail("--method names no method: stc,skip for instance")
    try:
        remembered = None if memory is None else read_memory(memory)
        methods = [
            read_method(name, {"tokens_per_frame": tokens_per_frame})
            for name in dict.fromkeys([_BASELINE, *names])
        ]
    except ValueError as error:
        fail(as_option(str(error)))
    return [
        replace(method.with_share(_SHARE), memory=method.memory or remembered) for method in methods
    ]


def _task(
    name: str, data: Path | None, videos: Path | None, fps: float | None, limit: int | None
) -> Task:
    from stc_stream.evaluate.tasks import TaskError, read_task

    try:
        task = read_task(name, data, videos, fps, limit)
        task.check_videos()
    except (TaskError, ModuleNotFoundError) as error:
        fail(str(error))
    return task


def _load(model: str | None, device: str, dtype: str) -> VideoLlm:
    from stc_stream.session.load import load_video_llm
    from stc_stream.towers.load import ModelError

    if model is None:
        own = files("stc_stream").joinpath("data/model")
        if not own.joinpath("config.json").is_file():
            fail(
                "--model must be given, a folder with a video LLM or its name on the hub: this "
                "package has no trained model yet"
            )
        model = str(own)
    try:
        return load_video_llm(model, device=device, dtype=dtype)
    except ModelError as error:
        fail(str(error))
    except ValueError as error:
        fail(as_option(str(error)))


def _opened(folder: Path | None, settings: RunSettings | None) -> RunFolder | None:
    from stc_stream.evaluate.accuracy import RunFolder

    if folder is None:
        return None
    try:
        return RunFolder(folder, settings)
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(f"no run can be kept in {folder} ({why(error)}): choose another --run")


def _scored_again(path: Path) -> AccuracyRun:
    from stc_stream.evaluate.accuracy import FailedVideo, VideoAnswers

    folder = _opened(path, None)
    assert folder is not None
    settings = folder.settings
    task = _read_again(settings)
    answered = [run for run in folder.found if isinstance(run, VideoAnswers)]
    names = list(dict.fromkeys(run.method for run in answered))
    if _BASELINE not in names:
        fail(f"{path} holds no answers of {_BASELINE}: run it first")
    failed = {run.video for run in folder.found if isinstance(run, FailedVideo)}
    wanted = {item.video for item in task.items} - failed
    complete = all({r.video for r in answered if r.method == name} >= wanted for name in names)
    return _scored(settings, task, names, folder.found, complete, folder)


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
        score_methods(task, names, answered, _BASELINE),
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


def _rows(run: AccuracyRun) -> Sequence[Mapping[str, Any]]:
    from stc_stream.report.accuracy import accuracy_rows

    return accuracy_rows(run)


def _report(run: AccuracyRun, outputs: Outputs[AccuracyRun]) -> None:
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
