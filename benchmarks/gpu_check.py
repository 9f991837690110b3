"""Everything that only a machine with an NVIDIA GPU can show, in one command, without a network.

    make gpu-check                (python -m benchmarks.gpu_check, with whatever python3 has torch)

Builds into that Python's environment, runs the whole test suite, then each kernel under
compute-sanitizer (memcheck and racecheck, where that tool is and works), each op captured in a CUDA
graph and replayed with changed inputs, and the benchmarks. What cannot run says so and why. Writes
benchmarks/results/<gpu>.json and .md; exit code 0, 1 if a step failed, 2 where there is no GPU.
``--rehearse`` goes through the steps without one, skipping what needs it, and still ends with 2.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "gpu-check"
SANITIZERS = ("memcheck", "racecheck")

# What each folder of tests imports at its head, as importable names.
_NEEDED = {
    "tests/cacher": ("transformers",),
    "tests/cli": ("av", "PIL", "jinja2", "matplotlib", "transformers"),
    "tests/ops": ("hypothesis",),
    "tests/packaging": ("ninja", "pybind11", "setuptools"),
    "tests/towers": ("transformers",),
}
_FIND_GPU = """
import torch
if torch.cuda.is_available():
    print(torch.cuda.get_device_name())
"""


@dataclass(frozen=True)
class Outcome:
    """How a step ended: ``passed``, ``failed`` or ``skipped``, and in which words."""

    step: str
    state: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.step}: {self.state}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Plan:
    """What the steps run with: the GPU's name, None without one, and the results' folder."""

    gpu: str | None
    results: Path

    @property
    def slug(self) -> str:
        """The GPU's name as that of a file."""
        return re.sub(r"[^a-z0-9]+", "-", (self.gpu or "no-gpu").lower()).strip("-")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="gpu_check", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true", help="go on without a GPU")
    parser.add_argument(
        "--steps", nargs="+", choices=STEPS, default=list(STEPS), help="only these (default: all)"
    )
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="where they go"
    )
    options = parser.parse_args(arguments)
    plan = Plan(find_gpu(), options.results)
    if plan.gpu is None and not options.rehearse:
        print(_NO_GPU, file=sys.stderr)
        return 2
    outcomes = run_steps(plan, options.steps)
    for outcome in outcomes:
        print(f"gpu-check: {outcome}")
    if plan.gpu is None:
        print(_NO_GPU, file=sys.stderr)
        return 2
    return 1 if any(outcome.state == "failed" for outcome in outcomes) else 0


def find_gpu() -> str | None:
    """Return the name of the GPU that torch sees, asked in a process of its own."""
    answer = subprocess.run(
        [sys.executable, "-c", _FIND_GPU], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or None


def run_steps(plan: Plan, steps: Sequence[str]) -> list[Outcome]:
    """Run the named steps in their order; a build that fails is the last."""
    WORK.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for name in (step for step in STEPS if step in steps):
        print(f"gpu-check: {name} ...", flush=True)
        found = STEPS[name](plan, outcomes)
        outcomes.extend(found)
        if name == "build" and found[0].state == "failed":
            break
    return outcomes


def build(plan: Plan, before: Sequence[Outcome]) -> list[Outcome]:
    """Compile the ops and install the tree in place."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    command += ["--no-index", "--no-build-isolation", "--no-deps", "--editable", str(ROOT)]
    return [_outcome("build", *_run(command))]


def run_tests(plan: Plan, before: Sequence[Outcome]) -> list[Outcome]:
    """Run the test suite, without the folders that import what is not installed."""
    outcomes, ignored = [], []
    for folder, names in _NEEDED.items():
        missing = [name for name in names if importlib.util.find_spec(name) is None]
        if missing:
            ignored.append(f"--ignore={ROOT / folder}")
            outcomes.append(Outcome(folder, "skipped", f"not installed: {', '.join(missing)}"))
    command = [sys.executable, "-m", "pytest", "-q", "--color=no", str(ROOT / "tests"), *ignored]
    return [_outcome("tests", *_run(command)), *outcomes]


def sanitize(plan: Plan, before: Sequence[Outcome]) -> list[Outcome]:
    """Run each op's kernels under compute-sanitizer's tools."""
    if plan.gpu is None:
        return [Outcome("compute-sanitizer", "skipped", "no GPU")]
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return [Outcome("compute-sanitizer", "skipped", "not found on PATH")]
    outcomes = []
    for check in SANITIZERS:
        for op in _ops():
            command = [tool, "--tool", check, "--error-exitcode", "9"]
            command += [sys.executable, "-m", "benchmarks.gpu_ops", "exercise", op]
            # Without torch's cache a tensor's end is the end of an allocation, which memcheck sees.
            code, lines = _run(command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
            refused = next((line for line in lines if "Device not supported" in line), None)
            if refused is not None:
                reason = f"the tool refuses this device: {refused.strip(' =')}"
                return [*outcomes, Outcome("compute-sanitizer", "skipped", reason)]
            outcomes.append(_outcome(f"{check} {op}", code, lines))
    return outcomes


def replay(plan: Plan, before: Sequence[Outcome]) -> list[Outcome]:
    """Capture each op in a CUDA graph and replay it on other inputs."""
    if plan.gpu is None:
        return [Outcome("CUDA graphs", "skipped", "no GPU")]
    command = [sys.executable, "-m", "benchmarks.gpu_ops", "replay"]
    return [_outcome(f"CUDA graph {op}", *_run([*command, op])) for op in _ops()]


def benchmark(plan: Plan, before: Sequence[Outcome]) -> list[Outcome]:
    """Run the benchmarks and write the results, with how the steps before them ended."""
    run = WORK / "run.json"
    run.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "--color=no", "--benchmark-quiet"]
    command += ["benchmarks/test_ops.py", "benchmarks/test_overhead.py"]
    command += [f"--benchmark-json={run}", f"--device={'cuda' if plan.gpu else 'cpu'}"]
    if plan.gpu is None:
        command += ["--seconds=0.1", "-k", "F1-float32 or overhead"]
    timed = _outcome("benchmarks", *_run(command))
    if not run.exists():
        return [timed]
    note = "; ".join(str(outcome) for outcome in (*_condensed(before), timed))
    # A rehearsal's figures are nobody's results.
    kept = plan if plan.gpu else replace(plan, results=WORK)
    prefix = kept.results / kept.slug
    command = [sys.executable, "-m", "benchmarks.report", str(run), "--save", str(prefix)]
    command += ["--note", f"`make gpu-check`: {note}.", "--command", "make gpu-check"]
    return [timed, _outcome(f"{prefix}.json and .md", *_run(command))]


STEPS: dict[str, Callable[[Plan, Sequence[Outcome]], list[Outcome]]] = {
    "build": build,
    "tests": run_tests,
    "sanitizer": sanitize,
    "graphs": replay,
    "benchmarks": benchmark,
}

_NO_GPU = "gpu-check: torch finds no NVIDIA GPU here, so nothing that needs one was checked"


def _ops() -> tuple[str, ...]:
    from benchmarks.cases import OPS

    return OPS


def _condensed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return one outcome where the ops of a step all passed, those that did not as they are."""
    condensed: dict[str, Outcome] = {}
    for outcome in outcomes:
        words = outcome.step.rpartition(" ")
        of_an_op = words[0] in (*SANITIZERS, "CUDA graph") and outcome.state == "passed"
        step = f"{words[0]} of the ops" if of_an_op else outcome.step
        condensed[step] = Outcome(step, outcome.state, "" if of_an_op else outcome.detail)
    return list(condensed.values())


def _outcome(step: str, code: int, lines: Sequence[str]) -> Outcome:
    last = next((line.strip(" =") for line in reversed(lines) if line.strip(" =")), "")
    if code == 0:
        return Outcome(step, "passed", last if step in ("tests", "benchmarks") else "")
    return Outcome(step, "failed", last or f"exit code {code}")


def _run(command: Sequence[str], **variables: str) -> tuple[int, list[str]]:
    """Run a command in the repository, showing its output; return its exit code and lines."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip("\n"))
    return process.wait(), lines


if __name__ == "__main__":
    sys.exit(main())
