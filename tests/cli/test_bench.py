"""The command `stc bench`: its tables and verdict, its files, and one line for what is wrong."""

from __future__ import annotations

import importlib.util
import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
import torch
from PIL import Image
from rich.console import Console
from transformers import CLIPVisionConfig, CLIPVisionModel

import stc_stream.evaluate.bench.engine as engine
from stc_stream.evaluate.bench import BenchConfig, BenchRun, Dense, RatioFidelity, Setting
from stc_stream.evaluate.fidelity import Fidelity
from stc_stream.evaluate.timing import Timing
from stc_stream.report.bench import (
    bench_schema,
    dense_table,
    fidelity_table,
    legend,
    settings_tables,
    verdict,
)
from stc_stream.report.terminal import print_table
from stc_stream.towers.load import load_tower
from stc_stream.towers.sizes import MODEL_SIZES

from .conftest import TINY, Outcome, told_to_stop

Stc = Callable[..., Outcome]
QUICK = ("--rounds", 2, "--no-compile")


def test_tables_a_verdict_and_both_files(stc: Stc, tiny_model: Path, tmp_path: Path) -> None:
    document, figure = tmp_path / "numbers.json", tmp_path / "figure.svg"
    files = ("--json", document, "--figure", figure)
    options = ("--update-ratio", "0.25, 0.5", "--update-ratio", 0.1, "--refresh-interval", "3")
    outcome = stc("bench", "--model", tiny_model, *QUICK, *options, "--streams", "1,3", *files)
    assert (outcome.code, outcome.err) == (0, "")
    for words in ("2 layers", "with STC, ms a frame", "cosine to dense", "needs a CUDA GPU"):
        assert words in outcome.out
    assert max(map(len, outcome.out.splitlines()[1:-2])) <= 80
    assert ElementTree.parse(figure).getroot().tag.endswith("svg")

    numbers = json.loads(document.read_text())
    jsonschema.Draft202012Validator.check_schema(bench_schema())
    jsonschema.validate(numbers, bench_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**numbers, "more": 1}, bench_schema())
    assert numbers["complete"]
    assert numbers["config"]["update_ratios"] == [0.1, 0.25, 0.5]
    settings = {
        (s["streams"], s["update_ratio"], s["refresh_interval"]) for s in numbers["settings"]
    }
    assert settings == {(s, r, 3) for s in (1, 3) for r in (0.1, 0.25, 0.5)}
    assert numbers["rounds"] == [{"streams": 1, "rounds": 2}, {"streams": 3, "rounds": 2}]
    assert said_to_win(numbers) in outcome.out
    for setting in numbers["settings"]:
        assert setting["cycle"]["min"] <= setting["cycle"]["median"]
        assert setting["saved"] == pytest.approx(1 - 1 / setting["times_faster"])
    # Frame by frame, one stream's cycle is a refresh and the selective frames after it.
    first = numbers["settings"][0]
    least = (first["refresh"]["min"] + 2 * first["selective"]["min"]) / 3
    assert first["cycle"]["min"] == pytest.approx(least)


def test_other_methods_are_timed_beside_stc(stc: Stc, tiny_model: Path, tmp_path: Path) -> None:
    methods = ["skip:refresh_interval=3", "merge:merged=4", "random_tokens"]
    named = [word for method in methods for word in ("--method", method)]
    options = ("--streams", "1,2", "--refresh-interval", 2, "--update-ratio", 0.5)
    document = tmp_path / "numbers.json"
    outcome = stc("bench", "--model", tiny_model, *QUICK, *options, *named, "--json", document)
    assert (outcome.code, outcome.err) == (0, "")
    assert "other methods, ms a frame" in outcome.out
    numbers = json.loads(document.read_text())
    jsonschema.validate(numbers, bench_schema())
    rows = [(row["streams"], row["method"]) for row in numbers["methods"]]
    assert rows == [(streams, method) for streams in (1, 2) for method in methods]
    computed = [row["computed"] for row in numbers["methods"]]
    # A third of the frames; 12, 8 and so on of 16 tokens; a refresh and three frames of 4 tokens.
    assert computed == pytest.approx([1 / 3, (12 + 8) / 32, (1 + 3 / 4) / 4] * 2)
    assert [row["refresh_interval"] for row in numbers["methods"]] == [3, 1, 4] * 2
    for row in numbers["methods"]:
        assert row["dense_side"] == "eager"
        assert 0 < row["cycle"]["min"] <= row["cycle"]["median"]
        assert row["saved"] == pytest.approx(1 - 1 / row["times_faster"])
    fidelity = {row["method"]: row for row in numbers["method_fidelity"]}
    assert list(fidelity) == methods
    assert fidelity["merge:merged=4"]["ages"] == [0]
    assert fidelity["skip:refresh_interval=3"]["features"][0] == pytest.approx(1)
    for method in ("tome", "skip:x=1", "uniform", "recent"):
        outcome = stc("bench", "--model", tiny_model, "--method", method)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert outcome.err.startswith("stc: --method ")


def said_to_win(numbers: dict) -> str:
    """Return the verdict's first words, counted from the document."""
    wins = [
        setting["times_faster"] > 1 and setting["times_faster_min"] > 1
        for setting in numbers["settings"]
    ]
    return f"STC wins at {sum(wins) or 'none'} of {len(wins)} settings on this machine"


def test_every_field_of_the_json_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "bench.md").read_text(encoding="utf-8")

    def names(part: object) -> set[str]:
        if not isinstance(part, dict):
            return set()
        nested = [names(value) for value in part.values()]
        return set(part.get("properties", {})).union(*nested)

    own = names({k: v for k, v in bench_schema()["properties"].items() if k != "machine"})
    assert "times_faster_min" in own
    assert [field for field in sorted(own) if f"`{field}`" not in page] == []


def test_a_png_is_drawn(stc: Stc, tiny_model: Path, tmp_path: Path) -> None:
    figure = tmp_path / "f.png"
    options = ("--streams", 1, "--refresh-interval", 2, "--update-ratio", 0.5)
    assert stc("bench", "--model", tiny_model, *QUICK, *options, "--figure", figure).code == 0
    assert Image.open(figure).size == (1350, 600)


def test_the_first_layers_only_are_said_plainly(stc: Stc, tiny_model: Path, tmp_path: Path) -> None:
    options = ("--layers", 1, "--streams", 1, "--refresh-interval", 2, "--update-ratio", 0.5)
    outcome = stc("bench", "--model", tiny_model, *QUICK, *options, "--json", tmp_path / "n.json")
    assert "the first 1 of its 2 layers (--layers 2 times all)" in outcome.out
    model = json.loads((tmp_path / "n.json").read_text())["model"]
    assert (model["layers"], model["whole_layers"]) == (1, 2)


def test_a_tower_with_a_class_token(stc: Stc, tmp_path: Path) -> None:
    CLIPVisionModel(CLIPVisionConfig(**TINY)).save_pretrained(tmp_path / "clip")
    options = ("--streams", 2, "--refresh-interval", 2, "--update-ratio", 0.5)
    arguments = ("bench", "--model", tmp_path / "clip", *QUICK, *options)
    assert stc(*arguments, "--json", tmp_path / "n.json").code == 0
    model = json.loads((tmp_path / "n.json").read_text())["model"]
    assert (model["tokens"], model["prefix_tokens"]) == (16, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--update-ratio", "0"), "'--update-ratio': 0.0 is not in the range 0<x<=1"),
        (("--update-ratio", "0.1,nan"), "'--update-ratio': nan is not a finite number"),
        (("--update-ratio", "0.1,,0.2"), "'--update-ratio': '' is not a valid float"),
        (("--refresh-interval", "1"), "'--refresh-interval': 1 is not in the range x>=2"),
        (("--refresh-interval", "2,x"), "'--refresh-interval': 'x' is not a valid integer"),
        (("--streams", "0"), "'--streams': 0 is not in the range x>=1"),
        (("--layers", "0"), "'--layers': 0 is not in the range x>=1"),
        (("--layers", "3"), "--layers must be 1 to 2"),
        (("--rounds", "0"), "'--rounds': 0 is not in the range x>=1"),
        (("--device", "toaster"), "--device must be auto, cpu, cuda or cuda:N"),
        (("--device", "cuda:99"), "--device 'cuda:99' is not there"),
        (("--dtype", "int8"), "'--dtype': 'int8' is not one of"),
        (("--tower", "vgg"), "'--tower': 'vgg' is not one of"),
        (("--tower", "clip-l"), "--tower and --model exclude each other"),
        (("--json", "FOLDER"), "it is a folder"),
        (("--json", "FOLDER/nowhere/x.json"), "there is no folder"),
        (("--figure", "FOLDER/f.pdf"), "--figure must end in .svg or .png"),
        (("--figure", "FOLDER/nowhere/f.svg"), "there is no folder"),
        (("--figure", "FOLDER/f.svg", "--json", "FOLDER/f.svg"), "--figure would overwrite"),
        (("talk.mp4",), "unexpected extra argument"),
    ],
)
def test_bad_input_is_one_line_and_code_two(
    stc: Stc, tiny_model: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    real = [word.replace("FOLDER", str(tmp_path)) for word in arguments]
    outcome = stc("bench", "--model", tiny_model, *real)
    assert outcome.code == 2
    assert words in outcome.err
    assert outcome.err.startswith("stc: ")
    assert outcome.err.count("\n") == 1
    assert "with STC" not in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_layers_of_a_named_tower_are_limited(stc: Stc) -> None:
    outcome = stc("bench", "--tower", "siglip-base", "--layers", 13)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "--layers must be 1 to 12" in outcome.err


def test_wrong_results_are_not_timed(
    stc: Stc, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = engine.ScheduledCacher.run

    def wrong(self: engine.ScheduledCacher, *arguments: object) -> torch.Tensor:
        return run(self, *arguments) * 1.01

    monkeypatch.setattr(engine.ScheduledCacher, "run", wrong)
    outcome = stc("bench", "--model", tiny_model, *QUICK)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "update_ratio=1, frame 0 differs from the dense tower by 0.01" in outcome.err
    assert "with STC" not in outcome.out


def test_a_tower_that_does_not_compile_is_said(
    stc: Stc, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(module: object) -> None:
        def run(inputs: object) -> None:
            raise RuntimeError("no compiler here\nand more lines")

        return run

    monkeypatch.setattr(engine, "compiled", refuse)
    outcome = stc("bench", "--model", tiny_model, "--rounds", 1, "--streams", 1)
    assert outcome.code == 0
    assert "not timed: dense compiled: RuntimeError: no compiler here\n" in outcome.out


def test_missing_packages_are_named(stc: Stc, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name == "matplotlib" else found(name, *rest),
    )
    outcome = stc("bench", "--figure", "x.svg")
    assert outcome.code == 2
    assert "stc bench needs packages that are not installed (matplotlib)" in outcome.err


def test_without_a_decoder_a_scene_is_drawn(tiny_model: Path, tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util\n"
        "gone = ('av', 'matplotlib', 'jinja2')\n"
        "sys.modules.update(dict.fromkeys(gone))\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda n, *r: None if n in gone else find(n, *r)\n"
        "from stc_stream.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "bench", "--model", str(tiny_model), "--no-compile",
               "--rounds", "1", "--streams", "1", "--json", str(tmp_path / "n.json")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "frames of a synthetic scene that drifts" in done.stdout
    jsonschema.validate(json.loads((tmp_path / "n.json").read_text()), bench_schema())


def test_ctrl_c_leaves_what_there_is(tiny_model: Path, tmp_path: Path) -> None:
    document = tmp_path / "numbers.json"
    code = (
        "import sys; from stc_stream.cli import main\n"
        "import stc_stream.evaluate.bench.engine as e\n"
        "step = e.TowerBench._time\n"
        "def told(self, trial):\n"
        "    step_ = self._progress.step\n"
        "    def step_and_say():\n"
        "        step_()\n"
        "        if trial.rounds == 2: print('two rounds', flush=True)\n"
        "    self._progress.step = step_and_say\n"
        "    step(self, trial)\n"
        "e.TowerBench._time = told\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["bench", "--model", str(tiny_model), "--no-compile",
                 "--rounds", "1000000", "--json", str(document)]  # fmt: skip
    outcome = told_to_stop(code, arguments, "two rounds", signal.SIGINT)
    out, err = outcome.out, outcome.err
    assert outcome.code == 0, err
    assert "Traceback" not in err
    assert "warning: stopped before all was timed" in err
    numbers = json.loads(document.read_text())
    jsonschema.validate(numbers, bench_schema())
    assert not numbers["complete"]
    assert numbers["rounds"][0]["rounds"] >= 2
    assert numbers["fidelity"] == []
    assert said_to_win(numbers) in out


def test_ctrl_c_before_the_first_round_is_one_line(
    stc: Stc, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: engine.TowerBench, trial: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.TowerBench, "_time", stop)
    outcome = stc("bench", "--model", tiny_model, *QUICK)
    assert outcome.code == 2
    assert outcome.err.strip() == "stc: stopped before there was anything to report"


def test_help(stc: Stc) -> None:
    outcome = stc("bench", "--help")
    assert (outcome.code, outcome.err) == (0, "")
    for word in (*MODEL_SIZES, "--model", "--update-ratio", "--refresh-interval", "--streams",
                 "--layers", "--rounds", "--device", "--dtype", "--json", "--figure",
                 "--no-compile"):  # fmt: skip
        assert word in outcome.out
    assert "bench" in stc().out


@pytest.fixture
def a_run(tiny_model: Path) -> BenchRun:
    timing = Timing.of([1.0, 2.0, 3.0])
    setting = Setting(
        streams=1,
        update_ratio=0.25,
        refresh_interval=4,
        graph=False,
        selective=timing,
        refresh=timing,
        cycle=timing,
        worst_batch_ms=3.0,
        dense_variant="compiled",
        speedup=2.0,
        speedup_min=1.9,
        max_speedup=2.5,
        selective_speedup=3.0,
        selective_max_speedup=4.0,
    )
    dense = (Dense(1, "eager", timing), Dense(1, "compiled", timing))
    tower = load_tower(str(tiny_model), device="cpu")
    return BenchRun(tower, 2, BenchConfig(), "clip", {1: 3}, dense, (setting,), (), True)


def test_the_verdict_names_what_wins_and_what_loses(a_run: BenchRun) -> None:
    (best,) = a_run.settings
    loses = replace(best, update_ratio=0.5, speedup=0.8, speedup_min=0.9)
    even = replace(best, update_ratio=0.6, speedup=1.1, speedup_min=0.9)
    assert [each.outcome for each in (best, loses, even)] == ["wins", "loses", "even"]
    first, second = verdict(a_run)
    assert "wins at 1 of 1" in first and "50% of ViT time saved" in first
    assert "2.00 times as fast as dense (compiled), 80% of what" in first
    assert second == "It loses at none."
    lines = verdict(replace(a_run, settings=(loses, best, even)))
    assert "wins at 1 of 3" in lines[0]
    assert lines[1] == "It LOSES at 1 stream, N=4, r=0.5 (-25%): leave those out."
    assert lines[2].startswith("Too close to call at 1 stream, N=4, r=0.6 (+9%)")
    many = tuple(replace(loses, streams=n) for n in range(1, 7))
    assert verdict(replace(a_run, settings=many))[0].startswith("STC wins at none of 6")
    assert "; 2 more:" in verdict(replace(a_run, settings=many))[1]


def test_tables_fit_into_sixty_columns_with_all_their_numbers(a_run: BenchRun) -> None:
    timing = Timing.of([1198.7, 1234.5, 1240.0])
    settings = [
        replace(each, streams=streams, update_ratio=ratio, graph=graph, selective=timing,
                cycle=timing, worst_batch_ms=98765.4)
        for each in a_run.settings
        for graph in (False, True)
        for streams in (1, 64)
        for ratio in (0.1, 0.125)
    ]  # fmt: skip
    sides = ("eager", "compiled", "in a CUDA graph", "compiled, in a CUDA graph")
    dense = [Dense(streams, side, timing) for streams in (1, 64) for side in sides]
    layers = ((0.9999, 0.9876, None),) * 2
    fidelity = RatioFidelity(0.125, Fidelity((0, 1, 2), (1, 1, 1), layers, layers[0]))
    run = replace(
        a_run, rounds={1: 3, 64: 3}, dense=tuple(dense), settings=tuple(settings),
        fidelity=(fidelity,),
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=60)
    for table in (dense_table(run), *settings_tables(run), fidelity_table(run)):
        print_table(console, table)
    printed = console.file.getvalue()
    assert max(map(len, printed.splitlines())) <= 60
    words = printed.split()
    assert words.count("1234") == 2 * 4 + 8 * 2
    assert words.count("98765") == 8
    assert words.count("0.9876") == 3
    assert printed.count("with STC in a CUDA graph") == 1


def test_the_legend_says_what_was_not_timed(a_run: BenchRun) -> None:
    note = "needs a CUDA GPU"
    dense = (*a_run.dense, Dense(1, "in a CUDA graph", None, note))
    assert f"not timed: dense in a CUDA graph: {note}" in legend(replace(a_run, dense=dense))
