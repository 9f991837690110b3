"""`stc bench`: whether STC pays on this machine."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stc_stream.cli.messages import as_option, fail, say
from stc_stream.cli.needs import TOO_LARGE, kernels, memory_errors, require_modules
from stc_stream.cli.options import (
    CONTEXT,
    SHARE,
    Listed,
    as_path,
    device_option,
    dtype_option,
    joined,
    json_option,
    method_option,
    model_option,
)
from stc_stream.cli.outputs import Outputs, figure_file, json_file
from stc_stream.cli.session import Session
from stc_stream.cli.terminal import progress_bar, tower_words
from stc_stream.interrupts import Interrupts
from stc_stream.report.terminal import print_table

if TYPE_CHECKING:
    from rich.console import Console

    from stc_stream.evaluate.bench import BenchConfig, BenchRun
    from stc_stream.evaluate.method import Method
    from stc_stream.towers.load import VisionModel
    from stc_stream.video.sample import Clip


@click.command(context_settings=CONTEXT, short_help="Is it worth it on this machine?")
@click.option(
    "--tower",
    default="siglip-base",
    show_default=True,
    type=click.Choice(["siglip-so400m", "siglip-base", "clip-l", "qwen2-vl"]),
    help="A real model's sizes, with random weights: nothing is downloaded.",
)
@model_option(
    "Instead of --tower, a SigLIP or CLIP model: a folder, or a name on the Hugging Face hub."
)
@method_option(
    "names",
    words="Another method to time beside STC: skip, merge, random_tokens; the option again for "
    "more.",
    multiple=True,
)
@click.option(
    "--update-ratio",
    "ratios",
    type=Listed(SHARE),
    multiple=True,
    callback=joined,
    help="Shares of a frame's tokens to recompute: 0.1,0.25, or the option again.  "
    "[default: 0.1,0.25,0.5]",
)
@click.option(
    "--refresh-interval",
    "intervals",
    type=Listed(click.IntRange(2)),
    multiple=True,
    callback=joined,
    help="Every N frames, one is computed whole; likewise a list.  [default: 2,4]",
)
@click.option(
    "--streams",
    type=Listed(click.IntRange(1)),
    multiple=True,
    callback=joined,
    help="Streams of which a batch holds a frame each; likewise a list.  "
    "[default: 1,4 on a CPU, 1,8 on a GPU]",
)
@click.option(
    "--layers",
    type=click.IntRange(1),
    help="Use only the tower's first N layers.  [default: what two minutes allow]",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    help="Time every side N times.  [default: what two minutes allow, 3 to 15]",
)
@device_option
@dtype_option
@click.option(
    "--compile/--no-compile",
    "compiles",
    default=True,
    show_default=True,
    help="Also time the dense tower under torch.compile.",
)
@json_option
@click.option(
    "--figure",
    metavar="FILE",
    type=as_path,
    help="Draw latency against the update ratio: a .svg or a .png.",
)
@click.pass_context
def bench(
    context: click.Context,
    tower: str,
    model: str | None,
    names: tuple[str, ...],
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
        fail("--tower and --model exclude each other: give one of them")
    needed = [*(["PIL"] if model else []), *(["matplotlib"] if figure else []), "transformers"]
    require_modules("stc bench", needed)
    session: Session = context.obj
    outputs: Outputs[BenchRun] = Outputs(
        session.output, json_file(document, _document), figure_file(figure, _write_figure)
    )
    kernels()
    from stc_stream.evaluate.bench import BenchConfig
    from stc_stream.video.sample import sample_clip

    defaults = BenchConfig(streams=(1, 8) if _on_gpu(device) else (1, 4))
    config = BenchConfig(
        update_ratios=ratios or defaults.update_ratios,
        refresh_intervals=intervals or defaults.refresh_intervals,
        streams=streams or defaults.streams,
        rounds=rounds,
        compile=compiles,
    )
    methods = _methods(names)
    console = outputs.console
    clip = sample_clip()
    with console.status("loading the tower"):
        loaded, whole = _bench_tower(tower, model, layers, device, dtype, config, clip, methods)
    part = f"the first {loaded.layers} of its {whole} layers (--layers {whole} times all)"
    outputs.begin(
        f"{tower_words(loaded, part if loaded.layers < whole else f'{whole} layers')}; "
        f"frames of {clip.name}"
    )
    run = _bench(loaded, whole, config, clip, methods, console, session.interrupts)
    _show_bench(run, console)
    outputs.write(run)


def _document(run: BenchRun) -> Mapping[str, Any]:
    from stc_stream.report.bench import bench_document

    return bench_document(run)


def _write_figure(run: BenchRun, path: Path) -> Path:
    from stc_stream.report.bench_figure import write_figure

    return write_figure(run, path)


def _methods(names: Sequence[str]) -> list[Method]:
    from stc_stream.evaluate.methods import read_method

    try:
        methods = [read_method(name) for name in dict.fromkeys(names)]
    except ValueError as error:
        fail(as_option(str(error)))
    for method in methods:
        if method.tower is None and (method.pruner or method.memory) is not None:
            fail(f"--method {method.name} leaves the tower as it is: there is nothing to time")
    return methods


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
    methods: Sequence[Method],
) -> tuple[VisionModel, int]:
    """Return the tower to time, perhaps its first layers only, and how many it has."""
    from stc_stream.evaluate.bench import first_layers, fitting_layers
    from stc_stream.towers.load import ModelError, build_tower, load_tower
    from stc_stream.towers.sizes import MODEL_SIZES

    try:
        if model is not None:
            tower = load_tower(model, device=device, dtype=dtype)
            whole = tower.layers
            if layers is None and config.rounds is None:
                layers = fitting_layers(tower, whole, config, clip, methods)
            return (tower if layers in (None, whole) else first_layers(tower, layers)), whole
        whole = MODEL_SIZES[name].layers
        if layers is None and config.rounds is None:
            probe = build_tower(name, layers=2, device=device, dtype=dtype)
            layers = fitting_layers(probe, whole, config, clip, methods)
            del probe
        return build_tower(name, layers=layers, device=device, dtype=dtype), whole
    except ModelError as error:
        fail(str(error))
    except ValueError as error:
        fail(as_option(str(error)))
    except memory_errors():
        fail(TOO_LARGE)


def _bench(
    tower: VisionModel,
    whole: int,
    config: BenchConfig,
    clip: Clip,
    methods: Sequence[Method],
    console: Console,
    interrupts: Interrupts,
) -> BenchRun:
    from stc_stream.evaluate.bench import TowerBench, WrongResult

    bar = progress_bar(console)
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
            return TowerBench(tower, config, clip, whole, Bar(), methods).run()
    except (TypeError, WrongResult) as error:
        fail(str(error))
    except memory_errors():
        fail(TOO_LARGE)


def _show_bench(run: BenchRun, console: Console) -> None:
    from stc_stream.report.bench import (
        dense_table,
        fidelity_table,
        legend,
        methods_table,
        settings_tables,
        verdict,
    )

    for table in (dense_table(run), *settings_tables(run)):
        print_table(console, table)
    if run.methods:
        print_table(console, methods_table(run))
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
        say("warning: stopped before all was timed; this is what there is so far")
