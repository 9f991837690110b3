"""Imports a framework that the package does without, or says how to get it."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def require(module: str, needed_by: str, package: str) -> Any:
    """Return the imported `module`; without it an ImportError that names the package to install."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ImportError(
            f"stc_kernels.interop.{needed_by} needs {error.name}, which is not installed: "
            f"pip install {package}",
            name=error.name,
        ) from None
