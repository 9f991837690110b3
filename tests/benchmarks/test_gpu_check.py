"""`make gpu-check`, as far as it goes without a GPU: its steps, what it says, its exit code."""

from __future__ import annotations

import pytest

from benchmarks import gpu_check, gpu_ops
from benchmarks.cases import OPS
from benchmarks.gpu_check import Outcome, Plan

NO_GPU = "gpu-check: torch finds no NVIDIA GPU here, so nothing that needs one was checked\n"


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """Record the commands that steps run, in place of running them; each ends as it is told."""
    ran: list[list[str]] = []
    ends: dict[str, tuple[int, list[str]]] = {}

    def run(command, **variables):
        ran.append(list(command))
        text = " ".join(command)
        return next((end for part, end in ends.items() if part in text), (0, ["3 passed", ""]))

    monkeypatch.setattr(gpu_check, "_run", run)
    monkeypatch.setattr(gpu_check, "WORK", tmp_path / "work")
    return ran, ends


def test_without_a_gpu_it_is_one_line_and_2(monkeypatch, capsys, commands):
    monkeypatch.setattr(gpu_check, "find_gpu", lambda: None)
    assert gpu_check.main([]) == 2
    assert capsys.readouterr().err == NO_GPU
    assert commands[0] == []


def test_a_rehearsal_goes_on_and_still_ends_with_2(monkeypatch, capsys, commands):
    monkeypatch.setattr(gpu_check, "find_gpu", lambda: None)
    assert gpu_check.main(["--rehearse"]) == 2
    shown = capsys.readouterr()
    assert shown.err == NO_GPU
    for words in ("build: passed", "tests: passed (3 passed)", "CUDA graphs: skipped (no GPU)"):
        assert f"gpu-check: {words}" in shown.out
    assert "--device=cpu" in " ".join(commands[0][-1])


def test_with_a_gpu_every_op_is_replayed_and_timed_there(monkeypatch, capsys, commands, tmp_path):
    monkeypatch.setattr(gpu_check, "find_gpu", lambda: "NVIDIA H200")
    monkeypatch.setattr(gpu_check.shutil, "which", lambda tool: f"/bin/{tool}")
    assert gpu_check.main(["--results", str(tmp_path)]) == 0
    ran = [" ".join(command) for command in commands[0]]
    for op in OPS:
        assert any(line.endswith(f"gpu_ops replay {op}") for line in ran)
        for tool in ("memcheck", "racecheck"):
            assert any(f"--tool {tool} " in line and line.endswith(op) for line in ran)
    assert any("--device=cuda" in line for line in ran)


def test_a_failing_step_is_1_and_a_failing_build_is_the_last(monkeypatch, capsys, commands):
    monkeypatch.setattr(gpu_check, "find_gpu", lambda: "NVIDIA H200")
    ran, ends = commands
    ends["pytest"] = (1, ["1 failed, 2 passed"])
    assert gpu_check.main(["--steps", "build", "tests"]) == 1
    assert "tests: failed (1 failed, 2 passed)" in capsys.readouterr().out
    ran.clear()
    ends["pip"] = (1, ["stc-kernels: no compiler"])
    assert gpu_check.main([]) == 1
    assert len(ran) == 1
    assert "build: failed (stc-kernels: no compiler)" in capsys.readouterr().out


def test_a_sanitizer_that_refuses_the_device_is_skipped(monkeypatch, commands):
    commands[1]["memcheck"] = (1, ["========= Error: Device not supported"])
    monkeypatch.setattr(gpu_check.shutil, "which", lambda tool: f"/bin/{tool}")
    (outcome,) = gpu_check.sanitize(Plan("NVIDIA H200", gpu_check.WORK), [])
    assert outcome.state == "skipped" and "Device not supported" in outcome.detail


def test_tests_of_what_is_not_installed_are_left_out_visibly(monkeypatch, commands):
    missing = lambda name: None if name == "av" else name  # noqa: E731
    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", missing)
    outcomes = gpu_check.run_tests(Plan("NVIDIA H200", gpu_check.WORK), [])
    assert Outcome("tests/cli", "skipped", "not installed: av") in outcomes
    assert any("--ignore" in word and "tests/cli" in word for word in commands[0][-1])


def test_the_results_are_named_after_the_gpu():
    assert Plan("NVIDIA H200", gpu_check.WORK).slug == "nvidia-h200"


@pytest.mark.parametrize("op", OPS)
def test_the_sizes_that_kernels_are_exercised_at(op):
    gpu_ops.exercise(op, device="cpu")
