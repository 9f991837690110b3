"""The examples of other frameworks run as they stand, each in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import stc_kernels

ROOT = Path(__file__).parents[2]


def run(name: str) -> list[str]:
    """Run an example, which must succeed, and return the lines it printed."""
    paths = [str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/interop" / name)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_example_is_tested():
    names = {path.name for path in (ROOT / "examples/interop").glob("*.py")}
    assert names == {
        "cupy_select.py",
        "jax_prune.py",
        "kernels_layer.py",
        "numpy_gate.py",
        "onnx_pruner.py",
    }


@pytest.mark.skipif(
    not stc_kernels.build_info()["extension"], reason="installed without compiled code"
)
def test_numpy_gate():
    assert run("numpy_gate.py") == [
        "frame 1: 0 of 48 patches changed",
        "frame 2: 0 of 48 patches changed",
        "frame 3: 10 of 48 patches changed, sent",
        "frame 4: 10 of 48 patches changed, sent",
        "frame 5: 0 of 48 patches changed",
        "frame 6: 0 of 48 patches changed",
        "torch imported: False",
    ]


def test_jax_prune():
    pytest.importorskip("jax", reason="JAX is not installed")
    arrays, *jit = run("jax_prune.py")
    assert arrays.startswith("arrays: (4, 64, 256) float32, first frame keeps [")
    assert jit == ["jit:    the same tokens: True", "        the same values: True"]


@pytest.mark.gpu
def test_cupy_select():
    pytest.importorskip("cupy", reason="CuPy is not installed")
    assert run("cupy_select.py") == [
        "cupy: tokens 100 to 119 changed",
        "20 of 729 tokens are recomputed",
    ]


def test_onnx_pruner():
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    for frames, line in zip((1, 8), run("onnx_pruner.py")[-2:], strict=True):
        found = re.fullmatch(rf"{frames} frames: kept \({frames}, 64, 256\), (\d+)% .*", line)
        # Two scores equal but for rounding may change places.
        assert found and int(found[1]) >= 98, line


def test_kernels_layer():
    pytest.importorskip("kernels", reason="kernels is not installed")
    assert run("kernels_layer.py") == [
        "loaded stc_kernels",
        "forward is now from stc_kernels.layers",
        "the same tokens: True",
    ]
