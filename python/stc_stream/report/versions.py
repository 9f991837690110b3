"""What runs here: versions of packages, the processor, its cores."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import torch

import stc_kernels

_PACKAGES = ("torch", "transformers", "av", "numpy", "triton")


def versions() -> Mapping[str, str | None]:
    """Return the versions of this package, Python and what it runs on; None: not installed."""
    found: dict[str, str | None] = {
        "stc_kernels": stc_kernels.__version__,
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def processor(device: torch.device) -> str:
    """Return the name of the GPU or CPU that `device` is."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """Return how many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
