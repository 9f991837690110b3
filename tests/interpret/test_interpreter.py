"""The Triton kernels on the CPU: ``launchers.py`` in a process that interprets them."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

pytest.importorskip("triton", reason="triton is not installed here: pip install triton")
ROOT = Path(__file__).resolve().parents[2]


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


@pytest.mark.slow
@pytest.mark.skipif(
    _release(importlib.metadata.version("triton")) < (3, 7)
    and _release(numpy.__version__) >= (2, 4),
    reason="the interpreter of Triton 3.6 cannot work with NumPy 2.4: pip install 'numpy<2.4'",
)
def test_kernels_under_the_interpreter(seed):
    command = [sys.executable, "-m", "pytest", str(ROOT / "tests" / "interpret" / "launchers.py")]
    command += ["-q", f"--seed={seed % 2**31}", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    run = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout and " skipped" not in run.stdout
