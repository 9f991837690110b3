"""Installing in every way there is, then calling an op from a directory outside the tree."""

from __future__ import annotations

import sysconfig
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Environment

MakeEnvironment = Callable[..., Environment]

USE = r"""
import torch, stc_kernels, stc_stream
tokens = torch.arange(24.0).reshape(2, 4, 3)
scores = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 4.0, 5.0, float("nan")]])
kept, index = stc_kernels.topk_gather(tokens, scores, 2)
assert index.tolist() == [[1, 3], [0, 2]], index
assert torch.equal(kept, tokens.gather(1, index[..., None].expand(-1, -1, 3)))
print(stc_kernels.build_info()["extension"])
print(stc_kernels.__file__, stc_stream.__file__, sep="\n")
"""
USE_NUMPY = """
import sys
import numpy
from stc_numpy import topk_gather
kept, index = topk_gather(numpy.ones((1, 3, 2), "float32"), numpy.eye(1, 3, 1, "float32"), 1)
assert index.tolist() == [[1]], index
assert "torch" not in sys.modules
"""
NO_EXT = {"STC_KERNELS_NO_EXT": "1"}

pytestmark = pytest.mark.slow


def install(
    environment: Environment, *arguments: str, variables: dict[str, str] | None = None
) -> str:
    """Install with pip, which must succeed, and return what it printed."""
    answer = environment.pip("install", "-v", "--no-deps", *arguments, variables=variables)
    # pip passes on what the build printed in stderr.
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout + answer.stderr


def use(environment: Environment, cwd: Path, code: str = USE) -> list[str]:
    """Run `code` in `cwd`, which must succeed, and return the lines it printed."""
    answer = environment.run("-c", code, cwd=cwd)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.splitlines()


def compiled(log: str) -> list[str]:
    """Return the names of the objects that `log` says were compiled."""
    return [line.split("/")[-1] for line in log.splitlines() if "] compile " in line]


@pytest.fixture(scope="module")
def installed(make_environment: MakeEnvironment, tree: Path, wheelhouse: Path) -> Environment:
    """Return an environment that had torch before `pip install .` and no index to fetch one from.

    The wheelhouse holds the build tools only: had the backend asked for torch, pip would have
    failed, as the test below shows.
    """
    environment = make_environment(torch=True)
    install(environment, "--find-links", str(wheelhouse), str(tree))
    return environment


def test_installs_against_the_torch_that_is_there(installed: Environment, tmp_path: Path) -> None:
    extension, kernels, stream = use(installed, tmp_path)
    assert extension == "True"
    for file in (kernels, stream):
        assert Path(file).is_relative_to(installed.site_packages)
    use(installed, tmp_path, USE_NUMPY)


def test_asks_for_torch_where_there_is_none(
    make_environment: MakeEnvironment, tree: Path, wheelhouse: Path
) -> None:
    environment = make_environment(torch=False)
    answer = environment.pip("install", "--no-deps", "--find-links", str(wheelhouse), str(tree))
    assert answer.returncode != 0
    assert "No matching distribution found for torch>=2.10" in answer.stdout + answer.stderr


def test_wheel_carries_what_the_packages_need(installed: Environment) -> None:
    packages = installed.site_packages
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for name in (
        "stc_kernels/py.typed",
        "stc_kernels/_build_info.py",
        f"stc_numpy/_kernels{suffix}",
        "stc_numpy/_kernels.pyi",
        "stc_numpy/py.typed",
        "stc_stream/py.typed",
    ):
        assert (packages / name).exists(), name
    assert not (packages / "stc_numpy/setup.py").exists()
    for folder in ("tests", "benchmarks", "csrc", "build_backend", "examples"):
        assert not (packages / folder).exists(), folder
    assert (installed.directory / "bin/stc").exists()
    # A wheel's libraries must not look for torch, or anything, where they were built.
    for library in packages.glob("stc_*/**/*.so"):
        assert str(packages.parents[2]).encode() not in library.read_bytes()


def test_every_data_file_of_the_tree_is_installed(installed: Environment, tree: Path) -> None:
    for root, package in ((tree, "stc_kernels"), (tree / "python", "stc_stream")):
        there = {
            path.relative_to(root)
            for path in (root / package).rglob("*")
            if path.is_file() and path.suffix not in (".pyc", ".so", ".dylib")
        }
        missing = {path for path in there if not (installed.site_packages / path).exists()}
        assert not missing


def test_stc_info_says_what_was_built(installed: Environment, tmp_path: Path) -> None:
    answer = installed.run(str(installed.directory / "bin/stc"), "info", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "topk_gather" in answer.stdout


def test_installs_without_build_isolation(
    make_environment: MakeEnvironment, tree: Path, tmp_path: Path
) -> None:
    environment = make_environment(torch=True, tools=True)
    install(environment, "--no-build-isolation", str(tree))
    extension, kernels, _ = use(environment, tmp_path)
    assert extension == "True"
    assert Path(kernels).is_relative_to(environment.site_packages)


def test_editable_install_works_inside_and_outside_the_tree(
    make_environment: MakeEnvironment, tree: Path, tmp_path: Path
) -> None:
    environment = make_environment(torch=True, tools=True)
    install(environment, "--no-build-isolation", "--editable", str(tree))
    for cwd in (tmp_path, tree):
        extension, kernels, stream = use(environment, cwd)
        assert extension == "True"
        assert Path(kernels) == tree / "stc_kernels/__init__.py"
        assert Path(stream) == tree / "python/stc_stream/__init__.py"
        use(environment, cwd, USE_NUMPY)


def test_a_rebuild_compiles_only_what_changed(
    make_environment: MakeEnvironment, tree: Path
) -> None:
    environment = make_environment(torch=True, tools=True)
    arguments = ("--no-build-isolation", "--editable", str(tree))
    install(environment, *arguments)
    assert "no work to do" in install(environment, *arguments)
    with (tree / "csrc/torch/gather_tokens.cpp").open("a", encoding="utf-8") as source:
        source.write("\n")
    log = install(environment, *arguments)
    assert compiled(log) == ["gather_tokens.o"]


def test_no_compiler_is_one_line_of_pip(make_environment: MakeEnvironment, tree: Path) -> None:
    environment = make_environment(torch=True, tools=True)
    answer = environment.pip(
        "install", "--no-deps", "--no-build-isolation", str(tree), variables={"PATH": ""}
    )
    assert answer.returncode != 0
    assert "[1 lines of output]" in answer.stderr
    assert "apt install g++" in answer.stderr


def test_installs_without_compiled_code(
    make_environment: MakeEnvironment, unbuilt_tree: Path, tmp_path: Path
) -> None:
    environment = make_environment(torch=True, tools=True)
    variables = {**NO_EXT, "PATH": ""}
    log = install(environment, "--no-build-isolation", str(unbuilt_tree), variables=variables)
    assert "stc_kernels-0.1.0-py3-none-any.whl" in log
    extension, *_ = use(environment, tmp_path)
    assert extension == "False"
    assert not list(environment.site_packages.glob("stc_*/**/*.so"))
    refused = environment.run("-c", "import stc_numpy", cwd=tmp_path).stderr.splitlines()[-1]
    assert refused.startswith("ImportError: stc_numpy has no compiled code in ")
    assert "STC_KERNELS_NO_EXT" in refused
    answer = environment.run(str(environment.directory / "bin/stc"), "info", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "naive" in answer.stdout


def test_python_in_an_unbuilt_tree_says_what_to_do(
    make_environment: MakeEnvironment, unbuilt_tree: Path, tree: Path
) -> None:
    environment = make_environment(torch=True, tools=True)
    install(environment, "--no-build-isolation", str(tree))
    # The tree hides the installed package, and must say so before it fails in some other way.
    answer = environment.run("-c", "import stc_kernels", cwd=unbuilt_tree)
    assert answer.returncode == 1
    last = answer.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert str(unbuilt_tree) in last
    assert "pip install -e ." in last


def test_source_distribution_is_whole(
    make_environment: MakeEnvironment, tree: Path, tmp_path: Path
) -> None:
    environment = make_environment(torch=False, tools=True)
    code = (
        f"import sys; sys.path.insert(0, {str(tree / 'build_backend')!r})\n"
        f"import stc_backend; print(stc_backend.build_sdist({str(tmp_path)!r}))"
    )
    answer = environment.run("-c", code, cwd=tree)
    assert answer.returncode == 0, answer.stderr
    with tarfile.open(tmp_path / answer.stdout.split()[-1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {
        str(path.relative_to(tree))
        for folder in ("csrc", "build_backend", "stc_kernels", "python")
        for path in (tree / folder).rglob("*")
        if path.is_file() and path.suffix in (".cpp", ".h", ".py", ".json", ".mp4", ".toml")
    }
    generated = {"stc_kernels/_build_info.py"}
    assert sources - generated <= names
    assert not {name for name in names if name.endswith((".so", ".o")) or name in generated}


def test_unwanted_compilers_flags_stay_out(installed: Environment, tree: Path) -> None:
    (build_file,) = tree.glob("build/*/build.ninja")
    text = build_file.read_text(encoding="utf-8")
    assert "-O3" in text
    for flag in ("-march=native", "-mcpu=native", "-ffast-math", "-Ofast"):
        assert flag not in text


def test_old_files_of_the_build_directory_stay_out_of_a_wheel(
    make_environment: MakeEnvironment, unbuilt_tree: Path
) -> None:
    left_over = unbuilt_tree / "build/lib/stc_kernels/removed_long_ago.py"
    left_over.parent.mkdir(parents=True)
    left_over.touch()
    environment = make_environment(torch=False, tools=True)
    install(environment, "--no-build-isolation", str(unbuilt_tree), variables=NO_EXT)
    assert (environment.site_packages / "stc_kernels/_build_info.py").exists()
    assert not (environment.site_packages / "stc_kernels/removed_long_ago.py").exists()
