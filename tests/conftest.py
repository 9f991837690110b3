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


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _browser() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
