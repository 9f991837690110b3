"""The build steps that pyproject.toml cannot say: the compiled libraries and _build_info.py."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from setuptools import Command, Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# pip puts the backend's directory on the path; `python setup.py` does not.
sys.path.insert(0, str(ROOT / "build_backend"))

from stc_commands import BuildPython  # noqa: E402
from stc_ninja import compile_libraries, library_name  # noqa: E402
from stc_toolchain import (  # noqa: E402
    TORCH_REQUIREMENT,
    check_build_tools,
    extension_wanted,
    fail,
    find_compiler,
    find_torch,
    isas,
)

PACKAGE = "stc_kernels"
BUILD_INFO = "_build_info.py"
TORCH_OPS = "stc_kernels.libstc_kernels"
NUMPY_MODULE = "stc_numpy._kernels"


class Build(build):
    """Starts from an empty build/lib, so that no file deleted from the tree lives on in a wheel."""

    sub_commands = [*build.sub_commands, ("build_info", None)]

    def run(self) -> None:
        if self.build_lib is not None:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildLibraries(build_ext):
    """Compiles both libraries with ninja, outside of setuptools' own compiler classes."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # What ninja left alone is older than an installed copy of another build.
        self.force = True

    def run(self) -> None:
        super().run()
        if self.inplace:
            self.run_command("build_info")

    def build_extensions(self) -> None:
        torch = find_torch()
        if torch is None:
            fail(f"torch is missing from the build environment: pip install '{TORCH_REQUIREMENT}'")
        libraries = compile_libraries(ROOT, find_compiler(), torch)
        built = {TORCH_OPS: libraries.torch_ops, NUMPY_MODULE: libraries.numpy_module}
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / built[extension.name], target)

    def get_ext_filename(self, fullname: str) -> str:
        *packages, name = fullname.split(".")
        if name == TORCH_OPS.rpartition(".")[2]:
            # A plain library for torch.ops.load_library and dlopen: no Python tag in its name.
            return str(Path(*packages, library_name()))
        return str(super().get_ext_filename(fullname))


class BuildInfo(Command):
    """Writes stc_kernels/_build_info.py, without which the package does not import."""

    description = "write what was built into stc_kernels/_build_info.py"
    user_options: list[tuple[str, str | None, str]] = []

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        target = self._in_tree() if self._inplace() else self._in_build()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_build_info(), encoding="utf-8")

    def get_source_files(self) -> list[str]:
        return []

    def get_outputs(self) -> list[str]:
        return [str(self._in_build())]

    def get_output_mapping(self) -> dict[str, str]:
        return {str(self._in_build()): str(self._in_tree())} if self.editable_mode else {}

    def _inplace(self) -> bool:
        return self.editable_mode or bool(self.get_finalized_command("build_ext").inplace)

    def _in_build(self) -> Path:
        return Path(str(self.build_lib), PACKAGE, BUILD_INFO)

    def _in_tree(self) -> Path:
        return ROOT / PACKAGE / BUILD_INFO


def _build_info() -> str:
    torch = find_torch() if extension_wanted() else None
    built = (
        (True, torch.version, find_compiler().version, tuple(isa.name for isa in isas()))
        if torch is not None
        else (False, "", "", ())
    )
    names = ("EXTENSION", "TORCH_VERSION", "COMPILER", "ISAS")
    lines = [f"{name} = {value!r}\n" for name, value in zip(names, built, strict=True)]
    return "".join(['"""What was built; written by setup.py."""\n\n', *lines])


check_build_tools()
setup(
    cmdclass={
        "build": Build,
        "build_ext": BuildLibraries,
        "build_info": BuildInfo,
        "build_py": BuildPython,
    },
    # The sources are ninja's affair: setuptools needs the names of what comes out.
    ext_modules=[Extension(TORCH_OPS, []), Extension(NUMPY_MODULE, [])]
    if extension_wanted()
    else [],
)
