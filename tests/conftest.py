"""What every test may use: fresh seeds that can be repeated, and skips for what is not here.

The marker ``full`` leaves a test to ``--full``; ``alone`` gives it a process of its own.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed", type=int, default=None, help="repeat a run: the seed that its header printed"
    )
    parser.addoption("--full", action="store_true", help="run the tests marked `full` as well")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--seed") is None:
        config.option.seed = random.randrange(2**31)
    _choose_examples(full=config.getoption("--full"))
    _find_timm()


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.getoption('--seed')} (repeat with --seed)"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        left = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left)
    for item in items:
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))
        if item.get_closest_marker("browser") and _browser() is None:
            item.add_marker(pytest.mark.skip(reason="no chromium here: apt install chromium"))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test marked ``alone`` in a process of its own, whatever has been run in this one."""
    if pyfuncitem.get_closest_marker("alone") is None or os.environ.get("STC_TEST_ALONE"):
        return None
    root = pyfuncitem.config.rootpath
    command = [sys.executable, "-m", "pytest", "-q", "--full", f"--rootdir={root}"]
    command += [f"--seed={pyfuncitem.config.getoption('--seed')}", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(root / pyfuncitem.nodeid)],
        cwd=root,
        env=os.environ | {"STC_TEST_ALONE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    passed = done.returncode == 0 and "1 passed" in done.stdout
    assert passed, done.stdout[-6000:] + done.stderr[-2000:]
    return True


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Return a seed of this test's own, new in every run."""
    own = zlib.crc32(request.node.nodeid.encode())
    return int(request.config.getoption("--seed")) ^ own


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    """Return a seeded torch generator on the CPU."""
    import torch

    return torch.Generator().manual_seed(seed)


@pytest.fixture
def browser() -> str:
    """Return the path of a headless-capable chromium; for tests marked ``browser``."""
    path = _browser()
    assert path is not None, "mark the test with `browser`, so that it skips where there is none"
    return path


def _choose_examples(*, full: bool) -> None:
    """Say how many examples a test of hypothesis tries that doesn't say so itself."""
    if find_spec("hypothesis") is not None:
        from hypothesis import settings

        settings.register_profile("stc", max_examples=250 if full else 50)
        settings.load_profile("stc")


def _find_timm() -> None:
    """Put timm and torchvision on the path, from the folder where the Makefile installs them.

    Beside a torch for CPUs the compiled part of PyPI's torchvision does not load. Without the
    schemas of its ops it is not imported either, nor is transformers, which asks for it once it is
    installed: so both are kept out of the environment, and the schemas are declared here.
    """
    folder = Path(sys.prefix, "timm")
    if not folder.is_dir():
        return
    sys.path.append(str(folder))
    import torch

    try:
        torch.ops.load_library(folder / "torchvision/_C.so")
    except OSError:
        boxes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        for op in ("nms", "qnms"):
            torch.library.define(f"torchvision::{op}", boxes)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _browser() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
