"""The build backend (PEP 517 and 660): setuptools', with two questions asked before it.

Is there a C++ compiler? If not, the build stops at once with one line. Does the environment being
installed into have torch? If so it is built against, and no second one is fetched; if not, torch
becomes a build requirement.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import build_sdist, get_requires_for_build_sdist

from stc_toolchain import (
    TORCH_REQUIREMENT,
    check_build_tools,
    extension_wanted,
    find_compiler,
    find_torch,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = Mapping[str, Any] | None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """Return what a build needs beside pyproject.toml's list: torch, or nothing."""
    if not extension_wanted():
        return []
    find_compiler()
    return [] if find_torch() is not None else [TORCH_REQUIREMENT]


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """Return what an editable build needs: the same as a wheel's."""
    return get_requires_for_build_wheel(config_settings)


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: Settings = None
) -> str:
    """Write the wheel's metadata in `metadata_directory` and return its directory's name."""
    _check_machine()
    name: str = build_meta.prepare_metadata_for_build_wheel(metadata_directory, config_settings)
    return name


def prepare_metadata_for_build_editable(
    metadata_directory: str, config_settings: Settings = None
) -> str:
    """Write the editable wheel's metadata, which is the wheel's."""
    _check_machine()
    name: str = build_meta.prepare_metadata_for_build_editable(metadata_directory, config_settings)
    return name


def build_wheel(
    wheel_directory: str,
    config_settings: Settings = None,
    metadata_directory: str | None = None,
) -> str:
    """Build a wheel in `wheel_directory` and return its file name."""
    _check_machine()
    name: str = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    return name


def build_editable(
    wheel_directory: str,
    config_settings: Settings = None,
    metadata_directory: str | None = None,
) -> str:
    """Build an editable wheel, its compiled files beside the sources, and return its file name."""
    _check_machine()
    name: str = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    return name


def _check_machine() -> None:
    # --no-build-isolation asks for no requirements, so nothing has been looked for yet; once
    # setuptools has begun, the one line would drown in its log.
    check_build_tools()
    if extension_wanted():
        find_compiler()
        find_torch()
