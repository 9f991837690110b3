"""The tower's benchmark on tiny towers: what it times and refuses, its table, page and curve."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from benchmarks import conftest, tower_report
from benchmarks import test_tower as bench
from stc_stream import CacherConfig, CacherStats
from stc_stream.cacher.part import AttachedTower
from stc_stream.evaluate.frames import MethodTower
from stc_stream.evaluate.method import Method
from stc_stream.evaluate.methods import method_names, read_method
from stc_stream.towers.load import VisionModel
from stc_stream.towers.sizes import Packing

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
HALF = (0.5, 0.5, 0.5)
RATIO = 0.25


def make(family: str) -> VisionModel:
    prefix, packing = 0, None
    if family == "siglip":
        module = SiglipVisionModel(SiglipVisionConfig(**TINY, vision_use_head=False))
    elif family == "clip":
        module, prefix = CLIPVisionModel(CLIPVisionConfig(**TINY)), 1
    else:
        config = Qwen2VLVisionConfig(depth=2, embed_dim=32, num_heads=2, hidden_size=16)
        module, packing = Qwen2VisionTransformerPretrainedModel(config), Packing(2, 2)
    cpu, module = torch.device("cpu"), module.eval().requires_grad_(False)
    sizes = (56, 14, 32, 2, HALF, HALF)
    return VisionModel(module, "tiny", False, *sizes, cpu, torch.float32, prefix, packing)


class Stopwatch:
    """As much of pytest-benchmark as is used."""

    def __init__(self) -> None:
        self.extra_info: dict[str, object] = {}
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))

    def pedantic(self, run: Callable[[], None], setup, rounds: int, warmup_rounds: int) -> None:
        for number in range(warmup_rounds + rounds):
            setup()
            start = time.perf_counter()
            run()
            if number >= warmup_rounds:
                self.stats.stats.data.append(time.perf_counter() - start)


@dataclass(frozen=True)
class Watched:
    """A Cacher whose counts can be read afterwards."""

    update_ratio: float
    refresh_interval: int
    stagger: bool
    stats: list[CacherStats] = field(default_factory=list)

    @contextmanager
    def attach(self, tower: torch.nn.Module) -> Iterator[AttachedTower]:
        config = CacherConfig.paper(self.update_ratio, self.refresh_interval, stagger=self.stagger)
        with config.attach(tower) as cacher:
            yield cacher
            self.stats.append(cacher.stats)


def test_the_dense_variants_are_eager_and_compiled(seed: int) -> None:
    torch.manual_seed(seed)
    tower = make("siglip")
    (batch,) = bench.clip(tower, 1)
    with torch.no_grad():
        sides, left_out = bench.dense_variants(tower, batch)
        assert list(sides) == ["dense", "dense_compiled"] and not left_out
        torch.testing.assert_close(*(side(batch) for side in sides.values()), rtol=1e-4, atol=1e-4)


def test_a_tower_that_does_not_compile_is_timed_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: torch.nn.Module) -> Callable[..., None]:
        def run(batch: object) -> None:
            raise RuntimeError("no compiler here\nand more")

        return run

    monkeypatch.setattr(bench, "compiled", broken)
    tower = make("clip")
    with torch.no_grad():
        sides, left_out = bench.dense_variants(tower, bench.clip(tower, 1)[0])
    assert list(sides) == ["dense"] and left_out == {"dense_compiled": "no compiler here"}


@pytest.mark.parametrize(("interval", "streams"), [(bench.NEVER, 1), (2, 1), (4, 8), (3, 4)])
@pytest.mark.parametrize("family", ["siglip", "clip", "qwen"])
def test_a_pass_is_a_cycle_of_every_stream(
    family: str, interval: int, streams: int, seed: int, monkeypatch: pytest.MonkeyPatch
):
    # A compiler's minute would be spent on what is tested above.
    monkeypatch.setattr(bench, "compiled", bench.eager)
    torch.manual_seed(seed)
    tower, watch, rounds = make(family), Stopwatch(), 2
    batches = bench.clip(tower, 1 if interval == bench.NEVER else interval, streams)
    part = Watched(RATIO, interval, streams > 1)
    bench.compare(watch, tower, Method("watched", part), batches, rounds)
    (stats,) = part.stats
    # Two batches and a pass to check and to begin with, then passes with one round to warm up.
    passes = 1 + 1 + rounds
    assert stats.frames == streams * (2 + passes * len(batches))
    info = watch.extra_info
    assert (info["streams"], info["frames"]) == (streams, streams * len(batches))
    assert info["cap"] > 1
    assert info["fastest"] in ("dense", "dense_compiled") and not info["left_out"]
    assert info["dense_ms"] > 0 and info["dense_compiled_ms"] > 0
    if interval != bench.NEVER and streams == 1:
        # Its first frame, and one a pass after the check's reset.
        assert stats.refreshes == 1 + passes


def test_wrong_results_are_refused(seed: int) -> None:
    torch.manual_seed(seed)
    tower = make("siglip")
    batches = bench.clip(tower, 1)
    with MethodTower(tower, Method("stc", CacherConfig.paper(RATIO, bench.NEVER))) as ours:
        with torch.no_grad():
            bench.check(tower, ours, batches)

        def wrong(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
            wrong.calls += 1
            return output * 1.01 if wrong.calls > 1 else output

        wrong.calls = 0
        ours.reset()
        ours.tower.layers[0].module.register_forward_hook(wrong)
        with torch.no_grad(), pytest.raises(AssertionError, match="of the norm from dense"):
            bench.check(tower, ours, batches)


WITH_A_CACHER = ("random_tokens", "stc", "stc_cacher", "stc_paper", "stc_released")


@pytest.mark.parametrize("name", method_names())
def test_any_method_is_timed(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "compiled", bench.eager)
    torch.manual_seed(seed)
    tower, watch = make("siglip"), Stopwatch()
    method = bench.with_cycle(read_method(name), 3, stagger=True)
    assert method.refresh_interval == (3 if name in (*WITH_A_CACHER, "skip") else 1)
    assert getattr(method.tower, "stagger", True)
    bench.compare(watch, tower, method, bench.clip(tower, 3, 2), rounds=2)
    assert watch.extra_info["method"] == name
    assert (watch.extra_info["cap"] is None) == (name not in WITH_A_CACHER)


def test_an_unknown_method_is_refused() -> None:
    given = {"--device": "cpu", "--method": "magic"}
    config = SimpleNamespace(getoption=given.__getitem__, stash={})
    with pytest.raises(pytest.UsageError, match="^--method: method must be one of dense, "):
        conftest.pytest_configure(config)


def run_file(tmp_path, part: str):
    streams = (1, 4, 16) if part == "streams" else (8,)
    benchmarks = []
    for count in streams:
        extra = {"tower": "T, 2 layers, torch.float32", "layers": 2, "streams": count,
                 "frames": count, "threads": 2, "dense_ms": 33.0 * count,
                 "dense_compiled_ms": 30.0 * count, "ours_ms": 10.0 * count,
                 "times_faster": 3.0, "times_faster_of_minima": 2.9, "cap": 3.24}  # fmt: skip
        stats = {"median": 0.01 * count, "q1": 0.01, "q3": 0.01, "min": 0.01, "rounds": 5}
        name = f"test_selective_frames_of_streams[float32-{count}]"
        benchmarks.append({"name": name, "extra_info": extra, "stats": stats})
    machine = {"processor": "P", "threads": 2, "torch": "2"}
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"benchmarks": benchmarks, "machine_info": machine}))
    return path


@pytest.mark.parametrize("part", tower_report.PARTS)
def test_a_run_becomes_a_table_a_page_and_a_curve(part: str, tmp_path, capsys) -> None:
    run, prefix, figure = run_file(tmp_path, part), tmp_path / "kept" / "p", tmp_path / "f.svg"
    arguments = [part, "--runs", str(run), "--save", str(prefix), "--figure", str(figure)]
    assert tower_report.main(arguments) == 0
    assert "selective_frames_of_streams[float32-" in capsys.readouterr().out
    page = (tmp_path / "kept" / "p.md").read_text()
    assert "| T, 2 layers, float32 |" in page
    assert "| 3.00 | 2.90 | 3.24 | 66.7% |" in page
    assert (tmp_path / "kept" / "p.json").exists()
    assert figure.exists() == (part == "streams")
    if figure.exists():
        assert ElementTree.parse(figure).getroot().tag.endswith("svg")


def test_a_page_says_which_method_ran_and_how(tmp_path, monkeypatch) -> None:
    run = json.loads(run_file(tmp_path, "streams").read_text())
    assert "# A tower with a Cacher, update_ratio 0.25, on P" in made_page(run, tmp_path, [])
    for each in run["benchmarks"]:
        each["extra_info"]["method"] = "skip:refresh_interval=3"
    page = made_page(run, tmp_path, ["--", "--method", "skip:refresh_interval=3"])
    assert "# A tower under skip:refresh_interval=3, on P" in page
    assert "streams --dtype float32 -- --method skip:refresh_interval=3`" in page


def made_page(run: dict, folder, more: list[str]) -> str:
    (folder / "run.json").write_text(json.dumps(run))
    arguments = ["streams", "--runs", str(folder / "run.json"), "--save", str(folder / "q"), *more]
    assert tower_report.main(arguments) == 0
    assert not list(folder.glob("*.svg"))
    return (folder / "q.md").read_text()


def test_a_run_that_is_not_there_is_one_line(tmp_path, capsys) -> None:
    assert tower_report.main(["frames", "--runs", str(tmp_path / "none.json")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_a_part_runs_its_own_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def note(command: list[str], check: bool) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(tower_report.subprocess, "run", note)
    arguments = ["frames", "--dtype", "bfloat16", "--", "-k", "clip", "-x"]
    assert tower_report.main(arguments) == 3
    (command,) = commands
    expected = "(not selective_frames_of_streams) and bfloat16 and (clip)"
    assert command[command.index("-k") + 1] == expected
    assert command[-1] == "-x"
