"""From what pytest-benchmark wrote to what is kept: figures, merging, targets, the page."""

from __future__ import annotations

import json

import pytest

from benchmarks import report
from benchmarks.results import Result, Results, from_runs, load
from benchmarks.targets import misses, verdicts
from stc_stream.evaluate.timing import Timing


def times(median: float) -> Timing:
    return Timing(median, median, median, median, 5, 1)


def op(
    name: str = "select_dynamic",
    frames: int = 16,
    device: str = "cpu",
    dtype: str = "float32",
    **sides,
) -> Result:
    about = {"op": name, "model": "m", "frames": frames, "tokens": 2, "channels": 3, "k": 1}
    about |= {"dtype": dtype, "device": device, "default": True}
    seconds = {"ours": 1.0, "eager": 100.0, "compiled": 10.0, "read": 1.0, "copy": 2.0} | sides
    all_sides = {side: times(t) for side, t in seconds.items()}
    return Result(f"{name}-F{frames}", "op", all_sides, about, 3000, 2000, 4000)


def all_of(*results: Result) -> Results:
    machine = {"processor": "P", "threads": 2, "torch": "2"}
    return Results(machine, 1, "", "make bench", results)


def run_file(tmp_path, name: str, ours: float, eager: float):
    sides = {"ours": times(ours).__dict__, "eager": times(eager).__dict__}
    extra = op().about | {"kind": "op", "bytes": 30, "read_bytes": 20, "copy_bytes": 40}
    benchmark = {"name": "test_op[x]", "extra_info": extra | {"sides": sides}}
    machine = {"processor": "P", "threads": 2, "torch": "2", "load_at_start": ours}
    path = tmp_path / name
    path.write_text(json.dumps({"benchmarks": [benchmark], "machine_info": machine}))
    return path


def test_figures():
    result = op(ours=2.0, eager=8.0, read=0.5)
    assert result.times_faster_than("eager") == 4.0
    assert result.times_faster_than("lean") is None
    assert result.fastest == "eager"
    # Limits and ours are no plain ways.
    assert op(ours=2.0, lean_compiled=9.0, read=0.5, copy=0.1).fastest == "lean_compiled"
    assert result.reads == 4.0
    assert result.rate == 1500.0
    assert result.percent_of_read == pytest.approx(100 * 1500 / 4000)
    assert result.percent_of_copy == pytest.approx(100 * 1500 / 2000)


def test_of_several_runs_the_medians_are_kept(tmp_path):
    runs = [(1.0, 10.0), (9.0, 36.0), (2.0, 24.0)]
    paths = [run_file(tmp_path, f"{i}.json", *run) for i, run in enumerate(runs)]
    results = from_runs(paths)
    (result,) = results.results
    assert (result.name, results.runs) == ("x", 3)
    assert result.ours == 2.0 and result.sides["eager"].median == 24.0
    # Of the runs' own ratios 10, 4 and 12, not of the medians.
    assert result.times_faster_than("eager") == 10.0
    assert result.sides["ours"].best == 1.0 and result.sides["ours"].rounds == 15
    assert results.machine["load_at_start"] == [1.0, 9.0, 2.0]


def test_saved_results_are_read_back(tmp_path):
    results = all_of(op(), op("prune_tokens", 1))
    results.save(tmp_path / "new" / "r.json")
    assert load(tmp_path / "new" / "r.json") == results


def test_a_towers_result_is_read(tmp_path):
    extra = {"tower": "T", "dense_ms": 3000.0, "dense_compiled_ms": 2800.0, "ours_ms": 1000.0}
    extra["cap"] = 3.2
    stats = {"median": 1.0, "q1": 0.9, "q3": 1.1, "min": 0.8, "rounds": 7}
    benchmark = {"name": "test_selective_frame[float32]", "extra_info": extra, "stats": stats}
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"benchmarks": [benchmark], "machine_info": {}}))
    (result,) = from_runs([path]).results
    assert result.kind == "tower" and result.name == "selective_frame[float32]"
    assert result.times_faster_than("dense") == pytest.approx(3.0)
    assert result.fastest == "dense_compiled"
    assert result.times_faster_than("dense_compiled") == pytest.approx(2.8)


@pytest.mark.parametrize(
    ("result", "missed"),
    [
        (op(ours=1.0, eager=8.0, compiled=1.5, read=0.4), []),
        (op(ours=1.0, eager=7.9, compiled=1.5, read=0.4), ["≥ 8 × eager"]),
        (op(ours=1.0, eager=8.0, compiled=1.4, read=0.4), ["≥ 1.5 × compiled"]),
        (op(ours=1.0, eager=8.0, compiled=1.5, read=0.3), ["≤ 2.5 × one read"]),
        # One frame: eager is slow to start, and a read has no time to.
        (op(frames=1, ours=1.0, eager=3.0, compiled=1.5, read=0.01), []),
        (op("prune_tokens", 1, ours=1.0, eager=10.0, compiled=3.0, read=0.01), []),
        (op("prune_tokens", 64, ours=1.0, eager=19.0, compiled=3.0), ["≥ 20 × eager"]),
        (op("merge_tokens", ours=1.0, eager=1.4), ["≥ 1.5 × eager"]),
        # In bfloat16 eager is bfloat16 itself, faster than what converts first.
        (op(dtype="bfloat16", ours=1.0, eager=4.0, compiled=1.5, read=0.4), []),
        (op(frames=1, dtype="bfloat16", ours=1.0, eager=3.9), ["≥ 4 × eager"]),
        (op("prune_tokens", dtype="bfloat16", ours=1.0, eager=7.9), ["≥ 8 × eager"]),
        (op("quiet_channels", ours=9.0, eager=1.0), []),
        (op(frames=64, device="cuda", copy=4000 / 3000 * 0.69), ["≥ 70% of copy bandwidth"]),
        (op(frames=16, device="cuda", copy=0.1), []),
    ],
)
def test_targets(result, missed):
    assert [verdict.target for verdict in misses(all_of(result))] == missed


def test_an_overhead_has_a_target():
    def overhead(seconds: float) -> Result:
        sides = {"op": times(seconds), "function": times(seconds), "empty": times(1e-6)}
        return Result("overhead[x]", "overhead", sides, {"op": "x", "dtype": "float32"})

    assert not misses(all_of(overhead(5.9e-6)))
    assert [v.figure for v in misses(all_of(overhead(8e-6)))] == ["7.0 µs"]
    assert len(verdicts(all_of(overhead(8e-6)))) == 1


def test_the_report_names_each_miss_and_draws(tmp_path, capsys):
    path = run_file(tmp_path, "run.json", ours=1.0, eager=1.0)
    run = json.loads(path.read_text())
    sides = run["benchmarks"][0]["extra_info"]["sides"]
    sides |= {name: times(1.0).__dict__ for name in ("compiled", "read", "copy")}
    path.write_text(json.dumps(run))
    prefix, figure = tmp_path / "kept" / "p.v1", tmp_path / "f.svg"
    arguments = [str(path), "--save", str(prefix), "--figure", str(figure), "--note", "Shared."]
    assert report.main(arguments) == 0
    assert "missed: x: 1.00 ×, target ≥ 8 × eager" in capsys.readouterr().out
    page = (tmp_path / "kept" / "p.v1.md").read_text()
    assert "| x | ≥ 8 × eager | 1.00 × |" in page and "Shared." in page
    assert load(tmp_path / "kept" / "p.v1.json").note == "Shared."
    assert figure.read_text().startswith("<?xml")


def test_a_run_that_is_not_there_is_one_line(tmp_path, capsys):
    assert report.main([str(tmp_path / "none.json")]) == 2
    assert "no such file" in capsys.readouterr().err
