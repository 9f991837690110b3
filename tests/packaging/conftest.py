"""Trees to install and environments to install into.

An environment here is a fresh venv that borrows what it is asked to have (torch and all else, NumPy
alone, the build tools) from the interpreter that runs the tests, by a ``.pth`` file: as good as
installed, without the gigabytes.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ninja
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD_TOOLS = ("setuptools", "pybind11", "ninja", "_distutils_hack")
_TREE = ("build_backend", "csrc", "python", "stc_kernels")
_TREE_FILES = ("LICENSE", "MANIFEST.in", "README.md", "constraints.txt", "pyproject.toml")
_BUILT = ("*.so", "*.dylib", "_build_info.py", "__pycache__", "*.egg-info", "build")


@dataclass(frozen=True)
class Environment:
    """A virtual environment to install into."""

    directory: Path

    @property
    def python(self) -> str:
        return str(self.directory / "bin" / "python")

    @property
    def site_packages(self) -> Path:
        return next((self.directory / "lib").glob("python*/site-packages"))

    def run(
        self, *arguments: str, cwd: Path, variables: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the environment's Python with `arguments`; its output is text."""
        return subprocess.run(
            [self.python, *arguments],
            cwd=cwd,
            env={**_environment(), **(variables or {})},
            capture_output=True,
            text=True,
            check=False,
        )

    def pip(
        self, *arguments: str, variables: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run this test session's pip on the environment, without any package index."""
        return subprocess.run(
            [sys.executable, "-m", "pip", "--python", self.python, *arguments, "--no-index"],
            cwd=self.directory,
            env={**_environment(), **(variables or {})},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the sources, as a clone has them, that tests build in one after another."""
    return _copy_tree(tmp_path_factory.mktemp("tree") / "a clone")


@pytest.fixture
def unbuilt_tree(tmp_path: Path) -> Path:
    """Return a copy of the sources that nothing has been built in."""
    return _copy_tree(tmp_path / "clone")


@pytest.fixture(scope="session")
def make_environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Environment]:
    """Return a function that makes an environment with what its arguments name, and nothing else.

    With torch comes NumPy, and whatever else there is.
    """
    borrowed = tmp_path_factory.mktemp("borrowed")
    _borrow(borrowed / "torch", lambda name: name not in BUILD_TOOLS)
    _borrow(borrowed / "numpy", lambda name: name in ("numpy", "numpy.libs"))
    _borrow(borrowed / "tools", lambda name: name in BUILD_TOOLS)

    def make(*, torch: bool = True, numpy: bool = False, tools: bool = False) -> Environment:
        directory = tmp_path_factory.mktemp("environment") / "venv"
        venv.create(directory, symlinks=True, with_pip=False)
        environment = Environment(directory)
        wanted = {"torch": torch, "numpy": numpy, "tools": tools}
        lines = "".join(f"{borrowed / name}\n" for name, is_wanted in wanted.items() if is_wanted)
        if tools:
            (directory / "bin/ninja").symlink_to(Path(ninja.BIN_DIR, "ninja"))
        (environment.site_packages / "borrowed.pth").write_text(lines, encoding="utf-8")
        return environment

    return make


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with wheels of the build tools, and of nothing else."""
    directory = tmp_path_factory.mktemp("wheelhouse")
    tools = ("setuptools", "pybind11", "ninja")
    answer = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        + ["--constraint", str(REPOSITORY / "constraints.txt"), "--dest", str(directory), *tools],
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        pytest.skip("the build tools' wheels could not be fetched: no package index here")
    return directory


def _copy_tree(target: Path) -> Path:
    target.mkdir(parents=True)
    for name in _TREE:
        shutil.copytree(REPOSITORY / name, target / name, ignore=shutil.ignore_patterns(*_BUILT))
    for name in (*_TREE_FILES, "setup.py"):
        shutil.copy2(REPOSITORY / name, target / name)
    return target


def _borrow(target: Path, wanted: Callable[[str], bool]) -> None:
    """Link the installed packages that `wanted` names, but ours and pip, into `target`."""
    target.mkdir()
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    for entry in Path(spec.origin).parents[1].iterdir():
        name = entry.name.partition("-")[0]
        ours = name.startswith(("stc_", "__editable__", "pip", "__pycache__"))
        if not ours and entry.suffix != ".pth" and wanted(name):
            (target / entry.name).symlink_to(entry)


def _environment() -> dict[str, str]:
    """Return the environment variables, less those that would change what is tested."""
    dropped = ("PIP_", "PYTHON", "STC_", "CXX", "VIRTUAL_ENV", "LDFLAGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {**kept, "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
