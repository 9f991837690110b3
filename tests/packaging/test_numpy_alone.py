"""`stc_numpy` by itself, where there is NumPy and no torch: neither to build nor to run."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import REPOSITORY, Environment

MakeEnvironment = Callable[..., Environment]

USE = """
import importlib.metadata
import importlib.util
import numpy as np
import stc_numpy

assert importlib.util.find_spec("torch") is None
assert importlib.util.find_spec("stc_kernels") is None
generator = np.random.default_rng()
current, reference = generator.standard_normal((2, 3, 20, 16), dtype=np.float32)
similarity = -np.abs(current - reference).sum(2)
np.testing.assert_allclose(
    stc_numpy.patch_similarity(current, reference, metric="l1"), similarity, rtol=1e-5
)
index, slot = stc_numpy.select_dynamic(current, reference, 5, metric="l1")
assert (index == np.sort(np.argsort(similarity)[:, :5])).all()
kept, best = stc_numpy.topk_gather(current, similarity, 5)
assert (kept == np.take_along_axis(current, best[:, :, None], 1)).all()
frames = generator.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
np.testing.assert_allclose(
    stc_numpy.frame_difference(*frames, 8), np.abs(np.diff(frames / 255, axis=0)).mean(), rtol=1e-5
)
print(importlib.metadata.requires("stc-numpy"))
print(stc_numpy.__file__)
"""

pytestmark = pytest.mark.slow


def install(
    environment: Environment, *arguments: str, variables: dict[str, str] | None = None
) -> None:
    """Install with pip, which must succeed."""
    answer = environment.pip("install", "-v", "--no-deps", *arguments, variables=variables)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def use(environment: Environment, cwd: Path) -> Path:
    """Call all there is in `cwd`; return where it was imported from."""
    answer = environment.run("-c", USE, cwd=cwd)
    assert answer.returncode == 0, answer.stderr
    requirements, file = answer.stdout.splitlines()
    assert requirements == "['numpy']"
    return Path(file)


@pytest.fixture
def bare(make_environment: MakeEnvironment) -> Environment:
    """Return an environment with NumPy and the build tools."""
    return make_environment(torch=False, numpy=True, tools=True)


def test_of_a_clone(make_environment: MakeEnvironment, tree: Path, wheelhouse: Path) -> None:
    # In an isolated build pip has the wheelhouse's three build tools, and no index to ask for more.
    environment = make_environment(torch=False, numpy=True)
    install(environment, "--find-links", str(wheelhouse), str(tree / "python/stc_numpy"))
    file = use(environment, environment.directory)
    assert file.is_relative_to(environment.site_packages)
    installed = {path.name for path in file.parent.iterdir() if path.suffix != ".so"}
    assert installed == {"__init__.py", "__pycache__", "_kernels.pyi", "py.typed"}
    names = {path.name for path in environment.site_packages.iterdir()}
    assert names == {"borrowed.pth", "stc_numpy", "stc_numpy-0.1.0.dist-info"}


def test_editable(bare: Environment, tree: Path, tmp_path: Path) -> None:
    install(bare, "--no-build-isolation", "--editable", str(tree / "python/stc_numpy"))
    assert use(bare, tmp_path) == tree / "python/stc_numpy/__init__.py"


def test_source_distribution_is_whole(bare: Environment, tree: Path, tmp_path: Path) -> None:
    code = f"from setuptools.build_meta import build_sdist; print(build_sdist({str(tmp_path)!r}))"
    answer = bare.run("-c", code, cwd=tree / "python/stc_numpy")
    assert answer.returncode == 0, answer.stderr
    archive = tmp_path / answer.stdout.split()[-1]
    with tarfile.open(archive) as opened:
        assert not [name for name in opened.getnames() if name.endswith((".so", ".pyc"))]
    # Nothing of the clone's build is in it, and a compiler that doesn't optimize is faster.
    install(bare, "--no-build-isolation", str(archive), variables={"CXXFLAGS": "-O0"})
    assert use(bare, tmp_path).is_relative_to(bare.site_packages)


def test_no_compiler_is_one_line_of_pip(bare: Environment, tree: Path) -> None:
    project = str(tree / "python/stc_numpy")
    answer = bare.pip(
        "install", "--no-deps", "--no-build-isolation", project, variables={"PATH": ""}
    )
    assert answer.returncode != 0
    assert "[1 lines of output]" in answer.stderr
    assert "apt install g++" in answer.stderr
    # There is nothing of it that would run without.
    assert "STC_KERNELS_NO_EXT" not in answer.stderr


def test_both_distributions_have_one_version() -> None:
    projects = (REPOSITORY / "pyproject.toml", REPOSITORY / "python/stc_numpy/pyproject.toml")
    versions = [re.search(r'^version = "(.+)"$', p.read_text("utf-8"), re.M) for p in projects]
    assert versions[0] and versions[1] and versions[0][1] == versions[1][1]
