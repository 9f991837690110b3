"""The build backend's answers: what pip must fetch before it can build, and when it must stop."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import REPOSITORY, Environment

ASK = """
import sys
sys.path[:1] = {path!r}
import stc_backend
print(stc_backend.get_requires_for_build_wheel())
print(stc_backend.get_requires_for_build_editable())
"""


def ask(
    environment: Environment, tools: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the hooks as pip's isolation does: the target's interpreter, its packages hidden."""
    code = ASK.format(path=[str(REPOSITORY / "build_backend"), str(tools)])
    return environment.run("-S", "-c", code, cwd=environment.directory, variables=variables)


@pytest.fixture
def tools(make_environment: Callable[..., Environment]) -> Path:
    """Return a folder that the build tools, and nothing else, can be imported from."""
    environment = make_environment(torch=False, tools=True)
    return Path((environment.site_packages / "borrowed.pth").read_text(encoding="utf-8").strip())


def give_torch(environment: Environment, version: str) -> None:
    """Put a package in `environment` that passes for a torch of `version`."""
    package = environment.site_packages / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('the build must not import torch')\n")
    (package / "version.py").write_text(f"__all__ = ['__version__']\n__version__ = '{version}'\n")


def test_torch_in_the_target_is_not_asked_for(
    make_environment: Callable[..., Environment], tools: Path
) -> None:
    answer = ask(make_environment(torch=True), tools)
    assert answer.stdout.splitlines() == ["[]", "[]"], answer.stderr


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "3.0.0a0+git0123abc"])
def test_torch_is_found_without_importing_it(
    make_environment: Callable[..., Environment], tools: Path, version: str
) -> None:
    environment = make_environment(torch=False)
    give_torch(environment, version)
    answer = ask(environment, tools)
    assert answer.stdout.splitlines() == ["[]", "[]"], answer.stderr


def test_absent_torch_becomes_a_build_requirement(
    make_environment: Callable[..., Environment], tools: Path
) -> None:
    answer = ask(make_environment(torch=False), tools)
    assert answer.stdout.splitlines() == ["['torch>=2.10']"] * 2, answer.stderr


def test_torch_of_the_working_directory_does_not_count(
    make_environment: Callable[..., Environment], tools: Path
) -> None:
    environment = make_environment(torch=False)
    (environment.directory / "torch").mkdir()
    (environment.directory / "torch" / "__init__.py").touch()
    answer = ask(environment, tools)
    assert answer.stdout.splitlines() == ["['torch>=2.10']"] * 2, answer.stderr


@pytest.mark.parametrize("version", ["1.13.1", "2.9.1+cu128"])
def test_old_torch_stops_the_build_with_one_line(
    make_environment: Callable[..., Environment], tools: Path, version: str
) -> None:
    environment = make_environment(torch=False)
    give_torch(environment, version)
    answer = ask(environment, tools)
    (line,) = answer.stderr.splitlines()
    assert answer.returncode == 1
    assert f"torch {version}" in line
    assert "pip install --upgrade 'torch>=2.10'" in line


def test_nothing_is_asked_for_without_compiled_code(
    make_environment: Callable[..., Environment], tools: Path
) -> None:
    environment = make_environment(torch=False)
    answer = ask(environment, tools, STC_KERNELS_NO_EXT="1", PATH="", CXX="")
    assert answer.stdout.splitlines() == ["[]", "[]"], answer.stderr


def test_no_compiler_stops_the_build_with_one_line_that_says_what_to_install(
    make_environment: Callable[..., Environment], tools: Path
) -> None:
    answer = ask(make_environment(torch=False), tools, PATH="", CXX="")
    (line,) = answer.stderr.splitlines()
    assert answer.returncode == 1
    for remedy in ("apt install g++", "xcode-select --install", "STC_KERNELS_NO_EXT=1"):
        assert remedy in line


def test_a_wrong_cxx_is_named(make_environment: Callable[..., Environment], tools: Path) -> None:
    answer = ask(make_environment(torch=False), tools, CXX="no-such-compiler -O1")
    (line,) = answer.stderr.splitlines()
    assert "no-such-compiler -O1" in line


def test_the_compiler_that_cxx_names_is_taken(
    make_environment: Callable[..., Environment], tools: Path
) -> None:
    environment = make_environment(torch=False)
    compiler = environment.directory / "my c++"
    compiler.write_text("#!/bin/sh\necho my compiler 1.0\necho more\n", encoding="utf-8")
    compiler.chmod(0o755)
    code = (
        f"import sys; sys.path[:0] = {[str(REPOSITORY / 'build_backend'), str(tools)]!r}\n"
        "import stc_toolchain; print(stc_toolchain.find_compiler())"
    )
    answer = environment.run(
        "-S", "-c", code, cwd=environment.directory, variables={"CXX": f"'{compiler}' -O1"}
    )
    assert answer.stdout.strip() == (
        f"Compiler(command=({str(compiler)!r}, '-O1'), version='my compiler 1.0')"
    ), answer.stderr


def test_old_build_tools_are_named_with_the_remedy(
    make_environment: Callable[..., Environment], tmp_path: Path
) -> None:
    package = tmp_path / "setuptools"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '65.5.0'\n", encoding="utf-8")
    code = (
        f"import sys; sys.path[:0] = {[str(REPOSITORY / 'build_backend'), str(tmp_path)]!r}\n"
        "import stc_toolchain; stc_toolchain.check_build_tools()"
    )
    environment = make_environment(torch=False)
    answer = environment.run("-S", "-c", code, cwd=tmp_path)
    (line,) = answer.stderr.splitlines()
    assert answer.returncode == 1
    for word in ("65.5.0", "pybind11", "ninja", "pip install 'setuptools>=77'"):
        assert word in line
