"""docs/use-one-op.md: what it says of a framework runs where that framework is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/use-one-op.md").read_text(encoding="utf-8")


def block(heading: str, language: str = "python") -> str:
    """Return the first block in a language under a heading."""
    section = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = re.search(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.mark.parametrize(
    ("heading", "package"),
    [
        ("JAX", "jax"),
        ("ONNX", "onnxscript"),
        ("Hugging Face `kernels`", "kernels"),
        pytest.param(
            "CuPy, and whatever else speaks DLPack", "cupy", marks=pytest.mark.gpu, id="cupy"
        ),
    ],
)
def test_block_runs(heading, package, tmp_path):
    pytest.importorskip(package, reason=f"{package} is not installed")
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", block(heading)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("heading", "example"),
    [("C++", "select_dynamic.cpp"), ("C++, a compiled model", "run_package.cpp")],
)
def test_cpp_is_that_of_the_example(heading, example):
    source = "".join((ROOT / "examples/interop/cpp" / example).read_text("utf-8").split())
    for line in block(heading, "cpp").splitlines():
        code = line.split(" //")[0].strip()
        # The page has a path where the program has its argument.
        code = code.replace('"path/to/libstc_kernels.so"', "argv[1]")
        assert "".join(code.split()) in source, line
