"""Builds `stc_numpy` alone, from the C++ sources of stc-kernels and without torch."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent
# A source distribution carries the sources that a clone has at its root.
ROOT = HERE if (HERE / "csrc").exists() else HERE.parents[1]
SOURCES = ("csrc/dispatch", "csrc/include", "csrc/numpy", "build_backend")
sys.path.insert(0, str(ROOT / "build_backend"))

from stc_commands import BuildPython  # noqa: E402
from stc_ninja import compile_libraries  # noqa: E402
from stc_toolchain import check_build_tools, find_compiler  # noqa: E402


class BuildModule(build_ext):
    """Compiles the module with ninja, outside of setuptools' own compiler classes."""

    def build_extension(self, extension: Extension) -> None:
        built = compile_libraries(ROOT, find_compiler(optional=False), None).numpy_module
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / built, target)


class SourceDistribution(sdist):
    """Takes the C++ sources and the build's own modules along."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        ignored = shutil.ignore_patterns("__pycache__")
        for part in SOURCES:
            shutil.copytree(ROOT / part, Path(base_dir, part), ignore=ignored, dirs_exist_ok=True)


check_build_tools()
find_compiler(optional=False)
setup(
    cmdclass={"build_ext": BuildModule, "build_py": BuildPython, "sdist": SourceDistribution},
    # The sources are ninja's affair: setuptools needs the name of what comes out.
    ext_modules=[Extension("stc_numpy._kernels", [])],
)
