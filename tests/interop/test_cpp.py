"""The C++ examples, built and run as their Makefile says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stc_kernels

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(
        not stc_kernels.build_info()["extension"], reason="installed without compiled code"
    ),
    pytest.mark.skipif(shutil.which("make") is None, reason="no make here"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here"),
]


def make(target: Path | str, out: Path) -> list[str]:
    """Make a target of the examples, which must succeed, and return the lines it printed."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        ["make", "--silent", "--no-print-directory", str(target)]
        + [f"PYTHON={sys.executable}", f"OUT={out}"],
        cwd=ROOT / "examples/interop/cpp",
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "TORCHINDUCTOR_CACHE_DIR": str(out / "inductor"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def run(*command: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, env={})


def test_an_op_through_the_stable_abi(tmp_path):
    *picture, summary = make("select_dynamic", tmp_path)
    expected = [["."] * 12 for _ in range(12)]
    for row in range(3):
        for column in range(3):
            expected[2 + row][2 + column] = expected[6 + row][5 + column] = "#"
    assert picture == ["".join(row) for row in expected]
    assert summary == "18 of 144 patches chosen; the first: 26"
    program = tmp_path / "select_dynamic"
    refused = run(program, tmp_path / "nothing.so")
    assert refused.returncode == 1 and "nothing.so" in refused.stderr
    assert run(program).returncode == 2


@pytest.mark.slow
def test_a_compiled_package_of_a_pruned_projector(tmp_path):
    package = tmp_path / "pruned_projector.pt2"
    expected = make(package, tmp_path)
    assert expected[0] == "kept [4, 8, 64]" and len(expected) == 5
    assert make("run_package", tmp_path) == expected
    # Another number of frames than it was exported with: the first frames are the same ones.
    (library,) = Path(stc_kernels.__file__).parent.glob("libstc_kernels.*")
    for frames in (1, 2):
        lines = run(tmp_path / "run_package", library, package, str(frames)).stdout.splitlines()
        assert lines == [f"kept [{frames}, 8, 64]", *expected[1 : 1 + frames]]
    # Beside a torch with CUDA the package itself needs libtorch.so; here a library stands for it.
    if sys.platform == "linux":
        whole, torch_libraries = tmp_path / "whole.so", Path(torch.__file__).parent / "lib"
        needed = ["-Wl,--no-as-needed", f"-L{torch_libraries}", "-ltorch", library]
        subprocess.run(["g++", "-shared", "-o", whole, *needed], check=True)
        lines = run(tmp_path / "run_package", whole, package, "4").stdout.splitlines()
        assert lines == expected
