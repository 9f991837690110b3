"""The compiled ops as a plain library: loaded without Python, and safe on any processor."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import stc_kernels

PROGRAM = Path(__file__).with_name("dlopen.cpp")
PACKAGE = Path(stc_kernels.__file__).parent

pytestmark = pytest.mark.skipif(
    not stc_kernels.build_info()["extension"], reason="installed without compiled code"
)


def test_loads_and_runs_in_a_program_without_python(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    torch = Path(spec.origin).parent
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler here")
    program = tmp_path / "dlopen"
    library_path = torch / "lib"
    subprocess.run(
        [compiler, "-std=c++20", str(PROGRAM), "-o", str(program)]
        + ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
        + ["-isystem", str(torch / "include")]
        + ["-isystem", str(torch / "include/torch/csrc/api/include")]
        + [f"-L{library_path}", f"-Wl,-rpath,{library_path}", "-ltorch_cpu", "-lc10", "-ldl"],
        check=True,
    )
    libraries = [path for path in PACKAGE.glob("libstc_kernels.*") if path.is_file()]
    assert len(libraries) == 1
    answer = subprocess.run(
        [program, libraries[0]], capture_output=True, text=True, check=False, env={}
    )
    assert answer.stdout.split() == ["20", "21", "40", "41", "1", "3"], answer.stderr


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 instructions")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump here: binutils")
@pytest.mark.parametrize("package", ["stc_kernels", "stc_numpy"])
def test_wide_instructions_are_in_the_dispatched_kernels_alone(package: str) -> None:
    (library,) = Path(str(importlib.import_module(package).__file__)).parent.glob("*.so")
    listing = subprocess.run(
        ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", str(library)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    wide: dict[str, str] = {}
    function = ""
    for line in listing.splitlines():
        header = re.match(r"^[0-9a-f]+ <(.*)>:$", line)
        if header:
            function = header.group(1)
        elif re.search(r"\tv\w+ .*%[xyz]mm", line):
            wide.setdefault(function, line.strip())
    assert any("avx2::" in name for name in wide)
    assert any("avx512::" in name for name in wide)
    outside = {name: line for name, line in wide.items() if "avx2::" not in name}
    assert not {name: line for name, line in outside.items() if "avx512::" not in name}
