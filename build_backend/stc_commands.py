"""What both setup.py have in common."""

from __future__ import annotations

from setuptools.command.build_py import build_py


class BuildPython(build_py):  # type: ignore[misc]
    """Keeps python/stc_numpy/setup.py out of wheels: it lies in a package, and is none of it."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Return the package's modules as (package, name, path)."""
        modules = super().find_package_modules(package, package_dir)
        return [module for module in modules if module[1] != "setup"]
