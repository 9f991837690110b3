"""`stc eval`: answers kept against time saved, on a task's questions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from stc_stream.cli.asking import load_asked
from stc_stream.cli.evaluating import (
    BASELINE,
    EvaluationRun,
    open_folder,
    report,
    rows_of,
    scored_again,
)
from stc_stream.cli.messages import as_option, fail
from stc_stream.cli.needs import NEEDED, kernels, require_modules
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
from stc_stream.report.terminal import printable

if TYPE_CHECKING:
    from stc_stream.evaluate.method import Method
    from stc_stream.evaluate.tasks import Task
    from stc_stream.report.accuracy import AccuracyRun
    from stc_stream.session.load import VideoLlm

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
    help="Methods with commas between them, settings behind a colon: stc,skip:refresh_interval=2; "
    "or all. dense is run besides.",
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
    outputs: Outputs[AccuracyRun] = Outputs(session.output, json_file(document, rows_of))
    if rescore is not None:
        for name in ("folder", "model", "task_name", "written", "limit"):
            if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
                option = {"folder": "run", "task_name": "task", "written": "method"}.get(name, name)
                fail(f"--{option} is not for --rescore, whose folder says it")
        report(scored_again(rescore), outputs)
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
    run = EvaluationRun(llm, task, methods, settings, open_folder(folder, settings))
    outputs.begin(f"{printable(llm.name)} ({llm.weights}) on {printable(task.name)}, {llm.device}")
    report(run.finish(outputs.console, session.interrupts), outputs)


def _methods(written: str, tokens_per_frame: int | None, memory: str | None) -> list[Method]:
    from stc_stream.evaluate.methods import read_memory, read_method, split_methods

    names = split_methods(written)
    if not names:
        fail("--method names no method: stc,skip for instance")
    try:
        remembered = None if memory is None else read_memory(memory)
        methods = [
            read_method(name, {"tokens_per_frame": tokens_per_frame})
            for name in dict.fromkeys([BASELINE, *names])
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
    from stc_stream.evaluate.small_model import model_folder

    return load_asked(model or str(model_folder()), device, dtype)
