"""The `stc` command: exit code 0, or 2 with one line that says what was wrong and what to do."""

from __future__ import annotations

import importlib.util
import io
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, redirect_stdout, suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import as_file, files
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from stc_stream.interrupts import Interrupts
from stc_stream.report.target import STANDARD_OUTPUT, check_file, is_standard_output, prepare_report
from stc_stream.report.terminal import (
    StandardOutput,
    hold_closed_descriptors,
    print_table,
    printable,
)

if TYPE_CHECKING:
    from rich.console import Console

    from stc_stream.benchmark import BenchConfig, BenchRun, Clip
    from stc_stream.comparison import StreamComparison
    from stc_stream.report.gallery import Gallery
    from stc_stream.report.run import StreamRun
    from stc_stream.towers.load import VisionModel
    from stc_stream.video import FrameStream

    # Generic from click 8.4 on, and not to be indexed before.
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType

# What the commands import, and the names that pip knows them by.
_NEEDED = {
    "av": "av",
    "PIL": "pillow",
    "matplotlib": "matplotlib",
    "jinja2": "jinja2",
    "transformers": "transformers",
}
_LONGEST = 600
_TOO_LARGE = "there is not enough memory for this model: choose a smaller one, or another --dtype"
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `stc` command and return its exit code, 0 or 2.

    Args:
        arguments: what follows `stc`; None: those of this process.
    """
    hold_closed_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file's name may hold what the terminal's encoding lacks.
            stream.reconfigure(errors="replace")
    output = StandardOutput(sys.stdout)
    with redirect_stdout(output), Interrupts() as interrupts:
        session = _Session(output, interrupts)
        try:
            code = stc.main(args=arguments, prog_name="stc", standalone_mode=False, obj=session)
            output.flush()
        except click.ClickException as error:
            return _failed(error.format_message())
        except (click.Abort, KeyboardInterrupt):
            return _failed("stopped before there was anything to report")
        except BrokenPipeError:
            return 0
    if output.failure and not session.is_excused(output.failure):
        return _failed(_no_output(output.failure))
    return code if isinstance(code, int) else 0


@dataclass
class _Session:
    """What a command is run with.

    Attributes:
        output: this process's standard output.
        interrupts: what ends the run.
        writes_files: the command leaves files, whether or not anybody reads its output.
    """

    output: StandardOutput
    interrupts: Interrupts
    writes_files: bool = False

    def is_excused(self, failure: OSError) -> bool:
        """Tell whether an output that failed is none that anybody waits for."""
        unwanted = self.output.closed_at_start and self.writes_files
        return unwanted or isinstance(failure, BrokenPipeError)

    def require_somewhere(self) -> None:
        """End a run whose output can't be written before it takes its time, unless it has files."""
        failure = self.output.failure
        if failure is None or self.writes_files:
            return
        if isinstance(failure, BrokenPipeError):
            raise failure
        _fail(_no_output(failure))


class _FiniteRange(click.FloatRange):
    """A range without NaN, which compares as inside any, and without infinity."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


class _Listed(_ParamType):
    """Several values of one option, with commas between them."""

    def __init__(self, each: _ParamType) -> None:
        self._each = each
        self.name = each.name

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "LIST"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[Any]:
        if not isinstance(value, str):
            return [self._each.convert(value, param, ctx)]
        return [self._each.convert(each.strip(), param, ctx) for each in value.split(",")]


def _joined(
    context: click.Context, parameter: click.Parameter, lists: Sequence[Sequence[Any]]
) -> tuple[Any, ...]:
    return tuple(value for values in lists for value in values)


def _name(text: str) -> str:
    if not text:
        raise click.BadParameter("it is empty: give a name, or leave it out")
    return text


def _path(text: str) -> Path:
    return Path(_name(text))


def _document(text: str) -> Path:
    return STANDARD_OUTPUT if text == "-" else _path(text)


@click.group(invoke_without_command=True, context_settings=_CONTEXT)
@click.option("--version", is_flag=True, help="Show the version and exit.")
@click.pass_context
def stc(context: click.Context, version: bool) -> None:
    """Streaming Token Compression: what it saves on a video and on this machine."""
    if version:
        click.echo(f"stc {metadata.version('stc-kernels')}")
    elif context.invoked_subcommand is None:
        click.echo(context.get_help())


@stc.command(context_settings=_CONTEXT, short_help="Stream a video and show what STC saves.")
@click.argument("video", type=_name, required=False)
@click.option(
    "--model",
    type=_name,
    metavar="NAME_OR_PATH",
    help="A SigLIP or CLIP model: a folder, or a name on the Hugging Face hub.  [default: the "
    "geometry of SigLIP-base-patch16-384 with random weights; nothing is downloaded]",
)
@click.option(
    "--update-ratio",
    type=_FiniteRange(0, 1, min_open=True),
    default=0.25,
    show_default=True,
    help="Share of a frame's tokens that the Cacher recomputes.",
)
@click.option(
    "--refresh-interval",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Every so many frames, one is computed whole.",
)
@click.option(
    "--refresh-on-change",
    type=_FiniteRange(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="A frame is computed whole when more than this share of its patches changed; 1: never.",
)
@click.option(
    "--tokens-per-frame",
    type=click.IntRange(1),
    help="Tokens of a frame that the Pruner keeps.  [default: a quarter]",
)
@click.option("--frames", type=click.IntRange(1), help="Stop after so many.  [default: all]")
@click.option(
    "--fps",
    type=_FiniteRange(0, min_open=True),
    help="Take at most so many frames of each second of video.  [default: all]",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="cpu, cuda or cuda:N; auto is a GPU where there is one.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="auto is float32 on a CPU, bfloat16 on a GPU.",
)
@click.option(
    "--report", metavar="DIR", type=_path, help="Write a page with pictures, DIR/index.html."
)
@click.option(
    "--json",
    "document",
    metavar="FILE",
    type=_document,
    help="Write all numbers as JSON; - is standard output, without the table.",
)
@click.pass_obj
def stream(
    session: _Session,
    video: str | None,
    model: str | None,
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
) -> None:
    """Stream VIDEO through a vision tower, dense and compressed, and show what that saved.

    VIDEO is a file, a folder of images, the number of a camera or an rtsp:// address; without it,
    a short sample clip is streamed. Ctrl-C stops and reports the frames so far.
    """
    _require_modules("stc stream", list(_NEEDED))
    from stc_stream.video import VideoError, open_video

    warnings: list[str] = []
    with ExitStack() as stack:
        source = video if video is not None else str(stack.enter_context(_sample()))
        # What is cheap to check comes before what takes seconds to import.
        _check_overwriting(source, report, document)
        _check_outputs(report, document, None)
        session.writes_files = report is not None or document is not None
        session.require_somewhere()
        try:
            opened = open_video(source, fps=fps, frames=frames, warn=warnings.append)
        except VideoError as error:
            _fail(str(error))
        stack.enter_context(opened)

        settings = {
            "update_ratio": update_ratio,
            "refresh_interval": refresh_interval,
            "refresh_on_change": refresh_on_change,
        }
        comparison = _comparison(model, device, dtype, settings, tokens_per_frame)
        stack.enter_context(comparison)
        from stc_stream.report.gallery import Gallery

        console = _console(document)
        gallery = Gallery()
        console.print(
            f"{printable(opened.name)} through {_tower_words(comparison.tower)}",
            highlight=False,
            soft_wrap=True,
        )
        sys.stdout.flush()
        session.require_somewhere()
        try:
            run = _run(comparison, opened, gallery, warnings, fps, console, session.interrupts)
        except VideoError as error:
            _fail(f"{opened.name}: {error}")
    _show(run, console)
    from stc_stream.report.document import stream_document, write_document
    from stc_stream.report.page import write_report

    outputs = []
    if document is not None:
        outputs.append(
            _Output("JSON", document, lambda: write_document(stream_document(run), document))
        )
    if report is not None:
        outputs.append(
            _Output("report", report, lambda: write_report(run, gallery.moments(), report))
        )
    _write(outputs, console)


@stc.command(context_settings=_CONTEXT, short_help="Is it worth it on this machine?")
@click.option(
    "--tower",
    default="siglip-base",
    show_default=True,
    type=click.Choice(["siglip-so400m", "siglip-base", "clip-l", "qwen2-vl"]),
    help="A real model's sizes, with random weights: nothing is downloaded.",
)
@click.option(
    "--model",
    type=_name,
    metavar="NAME_OR_PATH",
    help="Instead of --tower, a SigLIP or CLIP model: a folder, or a name on the Hugging Face hub.",
)
@click.option(
    "--update-ratio",
    "ratios",
    type=_Listed(_FiniteRange(0, 1, min_open=True)),
    multiple=True,
    callback=_joined,
    help="Shares of a frame's tokens to recompute: 0.1,0.25, or the option again.  "
    "[default: 0.1,0.25,0.5]",
)
@click.option(
    "--refresh-interval",
    "intervals",
    type=_Listed(click.IntRange(2)),
    multiple=True,
    callback=_joined,
    help="Every so many frames, one is computed whole; likewise a list.  [default: 2,4]",
)
@click.option(
    "--streams",
    type=_Listed(click.IntRange(1)),
    multiple=True,
    callback=_joined,
    help="Streams of which a batch holds a frame each; likewise a list.  "
    "[default: 1,4 on a CPU, 1,8 on a GPU]",
)
@click.option(
    "--layers",
    type=click.IntRange(1),
    help="Use only the tower's first so many layers.  [default: what two minutes allow]",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    help="Time every side so often.  [default: what two minutes allow, 3 to 15]",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="cpu, cuda or cuda:N; auto is a GPU where there is one.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="auto is float32 on a CPU, bfloat16 on a GPU.",
)
@click.option(
    "--compile/--no-compile",
    "compiles",
    default=True,
    show_default=True,
    help="Also time the dense tower under torch.compile.",
)
@click.option(
    "--json",
    "document",
    metavar="FILE",
    type=_document,
    help="Write all numbers as JSON; - is standard output, without the table.",
)
@click.option(
    "--figure",
    metavar="FILE",
    type=_path,
    help="Draw latency against the update ratio: a .svg or a .png.",
)
@click.pass_context
def bench(
    context: click.Context,
    tower: str,
    model: str | None,
    ratios: tuple[float, ...],
    intervals: tuple[int, ...],
    streams: tuple[int, ...],
    layers: int | None,
    rounds: int | None,
    device: str,
    dtype: str,
    compiles: bool,
    document: Path | None,
    figure: Path | None,
) -> None:
    """Time a tower dense and with STC, side by side, and say where STC wins and where it loses.

    Dense runs eagerly, compiled and, on a GPU, in a CUDA graph; STC is held against the fastest.
    Ctrl-C stops and shows what was timed so far.
    """
    chosen = context.get_parameter_source("tower") is not click.core.ParameterSource.DEFAULT
    if model is not None and chosen:
        _fail("--tower and --model exclude each other: give one of them")
    needed = [*(["PIL"] if model else []), *(["matplotlib"] if figure else []), "transformers"]
    _require_modules("stc bench", needed)
    _check_figure(figure, document)
    _check_outputs(None, document, figure)
    session: _Session = context.obj
    session.writes_files = document is not None or figure is not None
    session.require_somewhere()
    _kernels()
    from stc_stream.benchmark import BenchConfig, bench_clip

    defaults = BenchConfig(streams=(1, 8) if _on_gpu(device) else (1, 4))
    config = BenchConfig(
        update_ratios=ratios or defaults.update_ratios,
        refresh_intervals=intervals or defaults.refresh_intervals,
        streams=streams or defaults.streams,
        rounds=rounds,
        compile=compiles,
    )
    console = _console(document)
    clip = bench_clip()
    with console.status("loading the tower"):
        loaded, whole = _bench_tower(tower, model, layers, device, dtype, config, clip)
    part = f"the first {loaded.layers} of its {whole} layers (--layers {whole} times all)"
    console.print(
        f"{_tower_words(loaded, part if loaded.layers < whole else f'{whole} layers')}; "
        f"frames of {clip.name}",
        highlight=False,
        soft_wrap=True,
    )
    sys.stdout.flush()
    session.require_somewhere()
    run = _bench(loaded, whole, config, clip, console, session.interrupts)
    _show_bench(run, console)
    outputs = []
    if document is not None:
        from stc_stream.report.bench import bench_document
        from stc_stream.report.document import write_document

        outputs.append(
            _Output("JSON", document, lambda: write_document(bench_document(run), document))
        )
    if figure is not None:
        from stc_stream.report.bench_figure import write_figure

        outputs.append(_Output("figure", figure, lambda: write_figure(run, figure)))
    _write(outputs, console)


@stc.command(context_settings=_CONTEXT, short_help="Show what is installed and used here.")
@click.pass_obj
def info(session: _Session) -> None:
    """Show versions, what was built, and which implementation each op uses on this machine."""
    session.require_somewhere()
    built = _kernels().build_info()
    from stc_stream.report.info import info_table

    _console().print(info_table(built))


def _console(document: Path | None = None) -> Console:
    """Return a console for standard output; silent where a document goes there."""
    from rich.console import Console

    quiet = document is not None and is_standard_output(document)
    return Console(markup=False, emoji=False, quiet=quiet)


def _tower_words(tower: VisionModel, layers: str = "") -> str:
    parts = [printable(tower.name), *([layers] if layers else []), tower.weights]
    return f"{', '.join(parts)}, on {tower.device}"


def _kernels() -> ModuleType:
    try:
        import stc_kernels
    except ImportError as error:
        _fail(str(error))
    return stc_kernels


def _require_modules(command: str, modules: Sequence[str]) -> None:
    missing = [_NEEDED[name] for name in modules if not importlib.util.find_spec(name)]
    if missing:
        _fail(
            f"{command} needs packages that are not installed ({', '.join(missing)}): "
            "pip install 'stc-kernels[video]', or, in a clone of it, pip install '.[video]'"
        )


def _check_overwriting(source: str, report: Path | None, document: Path | None) -> None:
    from stc_stream.video.folder import SUFFIXES

    video = Path(source)
    page = None if report is None else report / "index.html"
    if page is not None and _same(page, video):
        _fail(f"--report would overwrite the video {video}: choose another --report")
    if document is None:
        return
    is_image = document.suffix.lower() in SUFFIXES and document.exists()
    if _same(document, video) or (is_image and _same(document.parent, video)):
        _fail(f"--json would overwrite the video ({document}): choose another --json")
    if page is not None and _same(document, page):
        _fail(f"--json would overwrite the page of --report, {page}: choose another --json")


def _same(one: Path, other: Path) -> bool:
    try:
        return one.resolve() == other.resolve() or one.samefile(other)
    except (OSError, RuntimeError):
        return False


def _check_outputs(report: Path | None, document: Path | None, figure: Path | None) -> None:
    checks: list[tuple[str, str, Path | None, Callable[[Path], None]]] = [
        ("report", "--report", report, prepare_report),
        ("JSON", "--json", document, check_file),
        ("figure", "--figure", figure, check_file),
    ]
    for what, option, path, check in checks:
        try:
            if path is not None:
                check(path)
        except OSError as error:
            _fail(f"no {what} can be written to {path} ({_why(error)}): choose another {option}")


def _check_figure(figure: Path | None, document: Path | None) -> None:
    if figure is None:
        return
    if figure.suffix not in (".svg", ".png"):
        _fail(f"--figure must end in .svg or .png, but is {figure}")
    if document is not None and _same(figure, document):
        _fail(f"--figure would overwrite the file of --json, {document}: choose another --figure")


def _comparison(
    model: str | None,
    device: str,
    dtype: str,
    settings: dict[str, Any],
    tokens_per_frame: int | None,
) -> StreamComparison:
    _kernels()
    from stc_stream.cacher import CacherConfig
    from stc_stream.comparison import StreamComparison
    from stc_stream.pruner import PrunerConfig
    from stc_stream.towers.load import ModelError, load_tower

    try:
        tower = load_tower(model, device=device, dtype=dtype)
        _check_tokens(tower, tokens_per_frame)
        cacher, pruner = CacherConfig(**settings), PrunerConfig.paper(tokens_per_frame)
        return StreamComparison(tower, cacher, pruner)
    except ModelError as error:
        _fail(str(error))
    except ValueError as error:
        _fail(_as_option(str(error)))


def _as_option(message: str) -> str:
    # The library's settings are named like the options: "update_ratio must be …".
    name, _, rest = message.partition(" ")
    return f"--{name.replace('_', '-')} {rest}"


def _check_tokens(tower: VisionModel, tokens_per_frame: int | None) -> None:
    if tokens_per_frame is not None and tokens_per_frame > tower.tokens:
        _fail(
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
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from torch import OutOfMemoryError

    from stc_stream.report.run import StreamRun

    numbers = []
    complete = False
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
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
    except (OutOfMemoryError, MemoryError):
        _fail(_TOO_LARGE)
    return StreamRun(
        source=opened.name,
        tower=comparison.tower,
        cacher=comparison.cacher_config,
        pruner=comparison.pruner_config,
        frames=tuple(numbers),
        warnings=tuple(warnings),
        complete=complete,
        fps=fps,
        fidelity=comparison.fidelity,
    )


def _show(run: StreamRun, console: Console) -> None:
    from stc_stream.report.table import summary_table, verdict

    print_table(console, summary_table(run))
    if not run.tower.pretrained:
        console.print(
            "The weights are random: latency is a trained tower's, the cosine is not.", style="dim"
        )
    console.print(verdict(run), style="bold", highlight=False, soft_wrap=True)
    if run.moving_camera is not None:
        console.print(f"{run.moving_camera}.", highlight=False, soft_wrap=True)
    sys.stdout.flush()
    for warning in run.warnings:
        _say(f"warning: {run.source}: {warning}")
    if not run.complete:
        _say(f"warning: stopped at frame {run.frames[-1].index}; this is what there is so far")


@dataclass(frozen=True)
class _Output:
    """A file to write: what to call it, where it goes, and what writes it and returns its path."""

    kind: str
    path: Path
    write: Callable[[], Path]


def _write(outputs: Sequence[_Output], console: Console) -> None:
    """Write all that can be, then fail with what could not."""
    missing = []
    stopped = False
    for output in outputs:
        place = printable(output.path)
        try:
            if not stopped:
                written = output.write()
                console.print(
                    f"{output.kind}: {printable(written)}", highlight=False, soft_wrap=True
                )
        except BrokenPipeError:
            # Whoever reads it has seen enough.
            continue
        except OSError as error:
            missing.append(
                f"the {output.kind} could not be written to {place} ({_why(error)}): make room, or "
                "choose another place"
            )
        except KeyboardInterrupt:
            stopped = True
        if stopped:
            missing.append(f"stopped before the {output.kind} was written to {place}")
    if missing:
        _fail("; ".join(missing))


def _on_gpu(device: str) -> bool:
    import torch

    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def _bench_tower(
    name: str,
    model: str | None,
    layers: int | None,
    device: str,
    dtype: str,
    config: BenchConfig,
    clip: Clip,
) -> tuple[VisionModel, int]:
    """Return the tower to time, perhaps its first layers only, and how many it has."""
    from stc_stream.benchmark import first_layers, fitting_layers
    from stc_stream.towers.load import ModelError, build_tower, load_tower
    from stc_stream.towers.sizes import MODEL_SIZES

    try:
        if model is not None:
            tower = load_tower(model, device=device, dtype=dtype)
            whole = tower.layers
            if layers is None and config.rounds is None:
                layers = fitting_layers(tower, whole, config, clip)
            return (tower if layers in (None, whole) else first_layers(tower, layers)), whole
        whole = MODEL_SIZES[name].layers
        if layers is None and config.rounds is None:
            probe = build_tower(name, layers=2, device=device, dtype=dtype)
            layers = fitting_layers(probe, whole, config, clip)
            del probe
        return build_tower(name, layers=layers, device=device, dtype=dtype), whole
    except ModelError as error:
        _fail(str(error))
    except ValueError as error:
        _fail(_as_option(str(error)))
    except _memory_errors():
        _fail(_TOO_LARGE)


def _memory_errors() -> tuple[type[BaseException], ...]:
    from torch import OutOfMemoryError

    return OutOfMemoryError, MemoryError


def _bench(
    tower: VisionModel,
    whole: int,
    config: BenchConfig,
    clip: Clip,
    console: Console,
    interrupts: Interrupts,
) -> BenchRun:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from stc_stream.benchmark import TowerBench, WrongResult

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("")

    class Bar:
        def begin(self, words: str, steps: int | None) -> None:
            bar.reset(task, description=words, total=steps)

        def step(self) -> None:
            bar.advance(task)

        def end(self) -> None:
            interrupts.finish()

    try:
        with bar:
            return TowerBench(tower, config, clip, whole, Bar()).run()
    except (TypeError, WrongResult) as error:
        _fail(str(error))
    except _memory_errors():
        _fail(_TOO_LARGE)


def _show_bench(run: BenchRun, console: Console) -> None:
    from stc_stream.report.bench import (
        dense_table,
        fidelity_table,
        legend,
        settings_tables,
        verdict,
    )

    for table in (dense_table(run), *settings_tables(run)):
        print_table(console, table)
    for line in legend(run):
        console.print(line, style="dim", highlight=False)
    console.print()
    if run.fidelity:
        print_table(console, fidelity_table(run))
        if not run.tower.pretrained:
            console.print(
                "The weights are random: latency is a trained tower's, the cosine is not.\n",
                style="dim",
            )
    for line in verdict(run):
        console.print(line, style="bold", highlight=False)
    sys.stdout.flush()
    if not run.complete:
        _say("warning: stopped before all was timed; this is what there is so far")


def _sample() -> AbstractContextManager[Path]:
    return as_file(files("stc_stream").joinpath("data/sample.mp4"))


def _why(error: OSError) -> str:
    reason = error.strerror or str(error)
    return reason[:1].lower() + reason[1:]


def _no_output(failure: OSError) -> str:
    return f"standard output cannot be written ({_why(failure)}): send it elsewhere"


def _fail(message: str) -> NoReturn:
    raise click.ClickException(message)


def _failed(message: str) -> int:
    _say(f"stc: {message}")
    return 2


def _say(message: str) -> None:
    # One line, whatever a file name or a library's message has in it; its remedy is at the end.
    line = printable(" ".join(message.split()))
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"
    # Where standard error fails too, the exit code is all that is left.
    with suppress(OSError):
        click.echo(line, err=True)


if __name__ == "__main__":
    sys.exit(main())
