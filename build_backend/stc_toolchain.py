"""What the build needs of the machine: torch's directory, a C++ compiler, the vector paths.

Shared by the build backend (which decides what pip must fetch) and by setup.py (which compiles), so
that both see the same torch. Nothing here imports torch.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import setuptools

OLDEST_SETUPTOOLS = 77
OLDEST_TORCH = (2, 10)
TORCH_REQUIREMENT = "torch>=2.10"

_NO_COMPILER = (
    "no C++ compiler found: install one (`apt install g++` on Debian and Ubuntu, "
    "`xcode-select --install` on macOS)"
)
_WITHOUT = "set STC_KERNELS_NO_EXT=1 to install without compiled code"

# Prints where this interpreter, started afresh, would import torch from. Its first path entry is
# the working directory, which is not part of the environment.
_ASK_FOR_TORCH = """
import importlib.util, sys
sys.path.pop(0)
spec = importlib.util.find_spec("torch")
if spec is not None and spec.origin is not None:
    print(spec.submodule_search_locations[0])
"""


@dataclass(frozen=True)
class Torch:
    """An installed torch: its package directory (with include/ and lib/) and its version."""

    directory: Path
    version: str


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: the words of its command, and the first line of its ``--version``."""

    command: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class Isa:
    """One compilation of the dispatched kernels: its name in ``-DSTC_ISA``, and its flags."""

    name: str
    flags: tuple[str, ...]


def fail(message: str) -> NoReturn:
    """Stop the build with one line; pip shows it as the whole output of the step that failed."""
    raise SystemExit(f"stc-kernels: {message}")


def check_build_tools() -> None:
    """Stop the build if what pyproject.toml's build-system asks for is missing or too old.

    pip sees to it, except with ``--no-build-isolation`` and where setup.py is run by hand.
    """
    missing = [name for name in ("pybind11", "ninja") if importlib.util.find_spec(name) is None]
    # Version 0 is what setuptools says of itself where its metadata is not to be found.
    if 0 < int(setuptools.__version__.partition(".")[0]) < OLDEST_SETUPTOOLS:
        missing.insert(0, f"setuptools>={OLDEST_SETUPTOOLS} (this is {setuptools.__version__})")
    if missing:
        fail(
            f"the build environment lacks {', '.join(missing)}: "
            f"pip install 'setuptools>={OLDEST_SETUPTOOLS}' pybind11 ninja"
        )


def extension_wanted() -> bool:
    """Return whether compiled code is to be built: always, unless STC_KERNELS_NO_EXT is set."""
    return os.environ.get("STC_KERNELS_NO_EXT", "0") in ("", "0")


def find_torch() -> Torch | None:
    """Return the torch to build against, or None.

    A torch that this process can import comes first: the one in the build environment, or in the
    target with ``--no-build-isolation``. Next comes the one in the environment that is being
    installed into: inside pip's isolated build ``sys.executable`` is still that environment's
    interpreter and only ``PYTHONPATH`` hides its packages, so the interpreter is asked without it.
    That answers for virtual environments, ``--user``, system site packages and ``.pth`` files
    alike. Tools that build in an environment of their own (``python -m build``, uv) get None.
    A torch older than 2.10 stops the build.
    """
    directory = _torch_of_this_process() or _torch_of_the_interpreter()
    if directory is None:
        return None
    torch = Torch(directory, _torch_version(directory))
    _require_supported(torch)
    return torch


def find_compiler(*, optional: bool = True) -> Compiler:
    """Return the C++ compiler: ``$CXX`` if set, else c++, g++ or clang++. None stops the build.

    Where compiled code is `optional`, the line that says so names the way without it.
    """
    if sys.platform == "win32":
        only = "compiled code is built on Linux and macOS only"
        fail(f"{only}: {_WITHOUT}" if optional else only)
    chosen = os.environ.get("CXX", "").strip()
    for command in [shlex.split(chosen)] if chosen else [["c++"], ["g++"], ["clang++"]]:
        version = _compiler_version(command)
        if version is not None:
            return Compiler(tuple(command), version)
    if chosen:
        fail(f"no C++ compiler found: CXX is {chosen!r}, which does not run; unset or correct it")
    fail(f"{_NO_COMPILER}, or {_WITHOUT}" if optional else _NO_COMPILER)


def isas() -> tuple[Isa, ...]:
    """Return the compilations of the dispatched kernels for this machine, narrowest first."""
    baseline = Isa("baseline", ())
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return (baseline,)
    avx2 = ("-mavx2", "-mfma", "-mf16c")
    avx512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512")
    return (baseline, Isa("avx2", avx2), Isa("avx512", (*avx512, *avx2)))


def _torch_of_this_process() -> Path | None:
    try:
        spec = importlib.util.find_spec("torch")
    except ValueError:
        return None
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent


def _torch_of_the_interpreter() -> Path | None:
    answer = subprocess.run(
        [sys.executable, "-E", "-c", _ASK_FOR_TORCH],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    ).stdout.strip()
    return Path(answer) if answer else None


def _torch_version(directory: Path) -> str:
    version_file = directory / "version.py"
    text = version_file.read_text(encoding="utf-8") if version_file.exists() else ""
    found = re.search(r"^__version__\s*(?::\s*\w+\s*)?=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    if found is None:
        fail(f"the torch in {directory} does not say its version: install torch again")
    return found.group(1)


def _require_supported(torch: Torch) -> None:
    major, minor = (int(part) for part in torch.version.split(".")[:2])
    if (major, minor) < OLDEST_TORCH:
        fail(
            f"torch {torch.version} in {torch.directory} is too old: "
            f"pip install --upgrade '{TORCH_REQUIREMENT}'"
        )


def _compiler_version(command: list[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    # macOS ships stubs that exist and fail until the command line tools are installed.
    answer = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    if answer.returncode != 0 or not answer.stdout.strip():
        return None
    return answer.stdout.strip().splitlines()[0]
