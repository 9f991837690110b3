"""What `pytest benchmarks` may be told, and what its JSON says of the machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

import stc_kernels
from benchmarks.timers import PerCall
from stc_stream.evaluate.methods import method_names, read_method
from stc_stream.evaluate.timing import Clock, EventClock, WallClock


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("stc")
    group.addoption(
        "--full", action="store_true", help="time every shape, not only those with a target"
    )
    group.addoption(
        "--device", default="cpu", choices=["cpu", "cuda"], help="where the ops are timed"
    )
    group.addoption(
        "--seconds", type=float, default=2.0, help="how long each op and shape is timed for"
    )
    group.addoption(
        "--method",
        default="stc:update_ratio=0.25,refresh_on_change=none",
        metavar="NAME:SETTING=VALUE,...",
        help=f"what runs the towers: {', '.join(method_names())} (default: %(default)s)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch finds no NVIDIA GPU here")
    try:
        read_method(config.getoption("--method"))
    except ValueError as error:
        raise pytest.UsageError(f"--method: {error}") from None
    config.stash[_LOAD] = os.getloadavg()[0]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    clock: Clock | None = None
    kept, left_out = [], []
    for item in items:
        case = getattr(item, "callspec", None) and item.callspec.params.get("case")
        if case is not None:
            if not (case.default or config.getoption("--full")):
                left_out.append(item)
                continue
            clock = clock or (EventClock() if _on_gpu(config) else WallClock())
            # pytest-benchmark takes another timer from a marker and from nowhere else.
            item.add_marker(pytest.mark.benchmark(timer=PerCall(clock), group=case.op))
        kept.append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@pytest.fixture
def clock(request: pytest.FixtureRequest) -> PerCall:
    """Return the clock that pytest-benchmark reads in this test."""
    marker = request.node.get_closest_marker("benchmark")
    assert marker is not None
    timer: PerCall = marker.kwargs["timer"]
    return timer


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--device"))


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float:
    return float(request.config.getoption("--seconds"))


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    processor = _processor() or machine_info.get("cpu", {}).get("brand_raw", "")
    machine_info.clear()
    machine_info |= {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torch_cpu": torch.backends.cpu.get_cpu_capability(),
        "ops": stc_kernels.implementation("select_dynamic", config.getoption("--device")),
        "compiler": stc_kernels.build_info()["compiler"],
        "load_at_start": round(config.stash[_LOAD], 1),
        "load_at_end": round(os.getloadavg()[0], 1),
    }
    if _on_gpu(config):
        machine_info |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        machine_info["triton"] = _version("triton")


_LOAD = pytest.StashKey[float]()


def _on_gpu(config: pytest.Config) -> bool:
    return bool(config.getoption("--device") == "cuda")


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str | None:
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return None
    names = [line for line in information.read_text().splitlines() if "model name" in line]
    return names[0].partition(":")[2].strip() if names else None
