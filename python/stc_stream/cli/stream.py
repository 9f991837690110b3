"""`stc stream`: a video, dense and compressed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stc_stream.cli.asking import (
    ask_stream,
    asking_options,
    check_moments,
    load_asked,
    new_album,
    read_asking,
    with_memory,
    write_answers_document,
    write_answers_page,
)
from stc_stream.cli.messages import as_option, fail, say
from stc_stream.cli.needs import NEEDED, TOO_LARGE, kernels, memory_errors, require_modules
from stc_stream.cli.options import (
    CONTEXT,
    SHARE,
    FiniteRange,
    as_name,
    as_path,
    device_option,
    dtype_option,
    json_option,
    method_option,
    model_option,
    pruner_option,
)
from stc_stream.cli.outputs import Outputs, json_file, page_file
from stc_stream.cli.session import Session
from stc_stream.cli.terminal import progress_bar, tower_words
from stc_stream.interrupts import Interrupts
from stc_stream.report.terminal import print_table, printable

if TYPE_CHECKING:
    from rich.console import Console

    from stc_stream.evaluate.method import Method
    from stc_stream.evaluate.stream import StreamComparison
    from stc_stream.report.gallery import Gallery
    from stc_stream.report.run import StreamRun
    from stc_stream.towers.load import VisionModel
    from stc_stream.video import FrameStream


@click.command(context_settings=CONTEXT, short_help="Stream a video and show what STC saves.")
@click.argument("video", type=as_name, required=False)
@model_option(
    "A SigLIP or CLIP model or a LLaVA-OneVision: a folder, or a name on the Hugging Face hub.  "
    "[default: the geometry of SigLIP-base-patch16-384 with random weights; nothing is downloaded]"
)
@method_option(
    words="What is held against dense: stc (the default, with the options below), skip, merge, "
    "evs_per_frame or another of docs/methods.md."
)
@click.option(
    "--update-ratio",
    type=SHARE,
    default=0.25,
    show_default=True,
    help="Share of a frame's tokens that the Cacher recomputes.",
)
@click.option(
    "--refresh-interval",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Every N frames, one is computed whole.",
)
@click.option(
    "--refresh-on-change",
    type=SHARE,
    default=0.5,
    show_default=True,
    help="A frame is computed whole when more than this share of its patches changed; 1: never.",
)
@click.option(
    "--tokens-per-frame",
    type=click.IntRange(1),
    help="Tokens of a frame that the Pruner keeps.  [default: a quarter]",
)
@click.option("--frames", type=click.IntRange(1), help="Stop after N frames.  [default: all]")
@click.option(
    "--fps",
    type=FiniteRange(0, min_open=True),
    help="Take at most N frames of each second of video.  [default: all]",
)
@pruner_option
@asking_options
@device_option
@dtype_option
@click.option(
    "--report", metavar="DIR", type=as_path, help="Write a page with pictures, DIR/index.html."
)
@json_option
@click.pass_context
def stream(
    context: click.Context,
    /,
    video: str | None,
    model: str | None,
    method: str | None,
    update_ratio: float,
    refresh_interval: int,
    refresh_on_change: float,
    tokens_per_frame: int | None,
    frames: int | None,
    fps: float | None,
    device: str,
    dtype: str,
    report: Path | None,
    document: Path | None,
    pruner: str | None,
    **asking: Any,
) -> None:
    """Stream VIDEO through a vision tower, dense and compressed, and show what that saved.

    VIDEO is a file, a folder of images, the number of a camera or an rtsp:// address; without it,
    a short sample clip is streamed. Ctrl-C stops and reports the frames so far.

    With --ask, frames go the whole way through a video LLM, which answers. Ctrl-C ends an answer;
    once more, or between answers, it stops.
    """
    session: Session = context.obj
    _check_method_options(context, method)
    asked = read_asking(context, asking)
    require_modules("stc stream", list(NEEDED))
    from stc_stream.video import VideoError, open_video

    warnings: list[str] = []
    with ExitStack() as stack:
        source = video if video is not None else str(stack.enter_context(_sample()))
        # What is cheap to check comes before what takes seconds to import.
        outputs: Outputs[Any] = Outputs(
            session.output,
            page_file(report, _write_page if asked is None else write_answers_page),
            json_file(document, _document if asked is None else write_answers_document),
            video=Path(source),
        )
        try:
            waiting = None if asked is None else asked.when_behind
            opened = open_video(
                source, fps=fps, frames=frames, warn=warnings.append, waiting=waiting
            )
        except VideoError as error:
            fail(str(error))
        stack.enter_context(opened)

        settings = {
            "update_ratio": update_ratio,
            "refresh_interval": refresh_interval,
            "refresh_on_change": refresh_on_change,
        }
        # A tower is run alone with a Pruner behind it; a language model with what the method has.
        prunes = asked is None or method in (None, "stc") or tokens_per_frame is not None
        chosen = _method(method, settings, tokens_per_frame, pruner, prunes)
        if asked is not None:
            check_moments(asked, opened)
            chosen = with_memory(chosen, asked)
            llm = load_asked(model, device, dtype)
            album = new_album() if report is not None else None
            interrupts = session.interrupts
            ask_stream(asked, llm, chosen, opened, fps, warnings, outputs, interrupts, album)
            return
        if chosen.tower is None and chosen.memory is not None:
            fail(f"--method {method} is what a language model remembers: give --ask as well")
        comparison = _comparison(model, device, dtype, chosen, tokens_per_frame)
        stack.enter_context(comparison)
        from stc_stream.report.gallery import Gallery

        gallery = Gallery()
        outputs.begin(f"{printable(opened.name)} through {tower_words(comparison.tower)}")
        console = outputs.console
        try:
            run = _run(comparison, opened, gallery, warnings, fps, console, session.interrupts)
        except VideoError as error:
            fail(f"{opened.name}: {error}")
    _show(run, console)
    outputs.write(_Streamed(run, gallery))


@dataclass(frozen=True)
class _Streamed:
    run: StreamRun
    gallery: Gallery


def _document(streamed: _Streamed) -> Mapping[str, Any]:
    from stc_stream.report.document import stream_document

    return stream_document(streamed.run)


def _write_page(streamed: _Streamed, directory: Path) -> Path:
    from stc_stream.report.page import write_report

    return write_report(streamed.run, streamed.gallery.moments(), directory)


def _sample() -> AbstractContextManager[Path]:
    return as_file(files("stc_stream").joinpath("data/sample.mp4"))


def _check_method_options(context: click.Context, method: str | None) -> None:
    """Refuse options that set up STC beside a method that has settings of its own."""
    if method in (None, "stc"):
        return
    for name in ("update_ratio", "refresh_interval", "refresh_on_change"):
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            option = f"--{name.replace('_', '-')}"
            fail(f"{option} is for stc alone: give settings with --method, NAME:{name}=VALUE")


def _method(
    name: str | None,
    settings: dict[str, Any],
    tokens_per_frame: int | None,
    pruner: str | None,
    prunes: bool,
) -> Method:
    kernels()
    from stc_stream.cacher import CacherConfig
    from stc_stream.evaluate.method import Method
    from stc_stream.evaluate.methods import read_method, read_pruner
    from stc_stream.pruner import PrunerConfig

    try:
        if name is None or name == "stc":
            chosen = Method("stc", tower=CacherConfig(**settings))
        else:
            chosen = read_method(name, {"tokens_per_frame": tokens_per_frame})
        if pruner is not None:
            chosen = replace(chosen, pruner=read_pruner(pruner, tokens_per_frame))
        elif chosen.pruner is None and prunes:
            chosen = replace(chosen, pruner=PrunerConfig.paper(tokens_per_frame))
    except (TypeError, ValueError) as error:
        fail(as_option(str(error)))
    if tokens_per_frame not in (None, chosen.pruner and chosen.pruner.tokens_per_frame):
        fail(f"--tokens-per-frame is not for {pruner or name}, which says itself what it keeps")
    return chosen


def _comparison(
    model: str | None, device: str, dtype: str, method: Method, tokens_per_frame: int | None
) -> StreamComparison:
    from stc_stream.evaluate.small_model import load_small_tower
    from stc_stream.evaluate.stream import StreamComparison
    from stc_stream.towers.load import ModelError, load_tower

    try:
        tower = load_tower(model, device=device, dtype=dtype)
        _check_tokens(tower, tokens_per_frame)
        closeness = None if tower.pretrained else load_small_tower(device, dtype)
        return StreamComparison(tower, method, closeness)
    except (ModelError, TypeError) as error:
        fail(str(error))
    except ValueError as error:
        fail(as_option(str(error)))


def _check_tokens(tower: VisionModel, tokens_per_frame: int | None) -> None:
    if tokens_per_frame is not None and tokens_per_frame > tower.tokens:
        fail(
            f"--tokens-per-frame must be at most {tower.tokens}, the tokens of a frame of "
            f"{tower.name}, but is {tokens_per_frame}"
        )


def _run(
    comparison: StreamComparison,
    opened: FrameStream,
    gallery: Gallery,
    warnings: list[str],
    fps: float | None,
    console: Console,
    interrupts: Interrupts,
) -> StreamRun:
    from stc_stream.report.run import StreamRun

    numbers = []
    complete = False
    bar = progress_bar(console)
    try:
        with bar:
            task = bar.add_task(f"streaming {printable(opened.name)}", total=opened.total)
            for frame in opened:
                result = comparison.step(frame)
                numbers.append(result.numbers)
                gallery.offer(result)
                bar.advance(task)
            complete = True
        interrupts.finish()
    except KeyboardInterrupt:
        if not numbers:
            raise
    except memory_errors():
        fail(TOO_LARGE)
    return StreamRun(
        source=opened.name,
        tower=comparison.tower,
        method=comparison.method,
        frames=tuple(numbers),
        warnings=tuple(warnings),
        complete=complete,
        fps=fps,
        fidelity=comparison.fidelity,
        closeness=comparison.closeness,
    )


def _show(run: StreamRun, console: Console) -> None:
    from stc_stream.report.table import summary_table, verdict

    print_table(console, summary_table(run))
    if run.closeness is not None:
        console.print(
            f"The weights are random: latency is a trained tower's of this size. Cosines are of "
            f"{run.closeness.name}, on the same frames.",
            style="dim",
        )
    console.print(verdict(run), style="bold", highlight=False, soft_wrap=True)
    if run.moving_camera is not None:
        console.print(f"{run.moving_camera}.", highlight=False, soft_wrap=True)
    sys.stdout.flush()
    for warning in run.warnings:
        say(f"warning: {run.source}: {warning}")
    if not run.complete:
        say(f"warning: stopped at frame {run.frames[-1].index}; this is what there is so far")
