"""Compiles csrc/ with ninja: which object is made with which flags, and what is linked of them.

Objects, depfiles and ninja's log stay in build/, so a rebuild compiles what changed and no more.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stc_toolchain import Compiler, Torch, fail, isas

if TYPE_CHECKING:
    from ninja.ninja_syntax import Writer

# One build made against torch 2.10's stable ABI loads into every later torch.
_TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
_COMMON_FLAGS = (
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-pthread",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
)


@dataclass(frozen=True)
class Libraries:
    """The shared libraries: the NumPy module, and the torch ops where they were asked for."""

    numpy_module: Path
    torch_ops: Path | None


@dataclass(frozen=True)
class _Object:
    source: str
    path: str
    flags: tuple[str, ...]


def build_directory() -> Path:
    """Return the directory of this platform's and interpreter's objects, relative to the root."""
    return Path("build", f"ninja-{sysconfig.get_platform()}-{sys.implementation.cache_tag}")


def compile_libraries(root: Path, compiler: Compiler, torch: Torch | None) -> Libraries:
    """Compile `root`/csrc, without `torch` for NumPy alone. An error stops the build.

    Returns paths relative to `root`.
    """
    ninja = _ninja_command()
    directory = build_directory()
    (root / directory).mkdir(parents=True, exist_ok=True)
    libraries = _write_build_file(root, directory, compiler, torch)
    # Paths in the build file are relative to the root, so that a moved tree stays built.
    command = [ninja, "-C", str(root), "-f", str(directory / "build.ninja")]
    if subprocess.run(command, check=False).returncode != 0:
        fail("the C++ sources did not compile: the compiler's own words are above")
    return libraries


def _write_build_file(
    root: Path, directory: Path, compiler: Compiler, torch: Torch | None
) -> Libraries:
    from ninja.ninja_syntax import Writer

    dispatch = _dispatch_objects(root, directory)
    numpy_objects = _objects(root, directory, "csrc/numpy/*.cpp", _numpy_flags())
    numpy_module = directory / f"_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
    torch_ops = directory / library_name()
    with (root / directory / "build.ninja").open("w", encoding="utf-8") as stream:
        writer = Writer(stream, width=100)
        writer.variable("builddir", str(directory))
        writer.variable("cxx", _words(compiler.command))
        writer.variable("cflags", _words((*_COMMON_FLAGS, *_environment_flags("CXXFLAGS"))))
        writer.variable("ldflags", _words((*_link_flags(), *_environment_flags("LDFLAGS"))))
        writer.rule(
            "compile",
            "$cxx $cflags $flags -MD -MF $out.d -c $in -o $out",
            description="compile $out",
            depfile="$out.d",
            deps="gcc",
        )
        writer.rule("link", "$cxx $ldflags $in $libs -o $out", description="link $out")
        _compile(writer, (*numpy_objects, *dispatch))
        _link(writer, numpy_module, (*numpy_objects, *dispatch), _numpy_libraries())
        if torch is None:
            return Libraries(numpy_module, None)
        torch_objects = _objects(root, directory, "csrc/torch/*.cpp", _torch_flags(torch))
        _compile(writer, torch_objects)
        _link(writer, torch_ops, (*torch_objects, *dispatch), _torch_libraries(torch))
    return Libraries(numpy_module, torch_ops)


def library_name() -> str:
    """Return the file name of the torch ops' library."""
    return "libstc_kernels.dylib" if sys.platform == "darwin" else "libstc_kernels.so"


def _dispatch_objects(root: Path, directory: Path) -> tuple[_Object, ...]:
    """Return select.cpp's object, then kernels.cpp's once for each instruction set.

    Narrowest first: of an inline function that several objects carry, the linker keeps the first
    copy, and that one must run on every machine.
    """
    kernels = root / "csrc/dispatch/kernels.cpp"
    if not kernels.exists():
        fail(f"{kernels} is missing: this is not a whole source tree")
    available = [f"-DSTC_HAVE_{isa.name.upper()}" for isa in isas() if isa.name != "baseline"]
    common = [
        _Object(
            str(path.relative_to(root)),
            str(directory / "dispatch" / f"{path.stem}.o"),
            ("-Icsrc/include", *available),
        )
        for path in sorted((root / "csrc/dispatch").glob("*.cpp"))
        if path != kernels
    ]
    by_isa = [
        _Object(
            str(kernels.relative_to(root)),
            str(directory / "dispatch" / f"kernels.{isa.name}.o"),
            ("-Icsrc/include", f"-DSTC_ISA={isa.name}", *isa.flags),
        )
        for isa in isas()
    ]
    return (*common, *by_isa)


def _objects(
    root: Path, directory: Path, pattern: str, flags: tuple[str, ...]
) -> tuple[_Object, ...]:
    sources = sorted(root.glob(pattern))
    if not sources:
        fail(f"{pattern} matches no file in {root}: this is not a whole source tree")
    return tuple(
        _Object(
            str(path.relative_to(root)),
            str(directory / path.parent.name / f"{path.stem}.o"),
            ("-Icsrc/include", *flags),
        )
        for path in sources
    )


def _torch_flags(torch: Torch) -> tuple[str, ...]:
    include = torch.directory / "include"
    api = include / "torch/csrc/api/include"
    # As system headers, torch's own warnings stay out of the build's output. Its messages name the
    # header they come from, which is not to be a path of the machine that built.
    nameless = f"-fmacro-prefix-map={include}/="
    return (_TORCH_TARGET, nameless, "-isystem", str(include), "-isystem", str(api))


def _torch_libraries(torch: Torch) -> tuple[str, ...]:
    # No rpath: whoever loads the library has torch loaded already, wherever it lies.
    libraries = (f"-L{torch.directory / 'lib'}", "-ltorch_cpu")
    # A symbol that torch lacks is to fail here, not when the library is loaded.
    return libraries if sys.platform == "darwin" else (*libraries, "-Wl,-z,defs")


def _numpy_flags() -> tuple[str, ...]:
    import pybind11

    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        fail(f"Python's headers are missing ({include}/Python.h): apt install python3-dev")
    return ("-isystem", str(pybind11.get_include()), "-isystem", include)


def _numpy_libraries() -> tuple[str, ...]:
    return ("-undefined", "dynamic_lookup") if sys.platform == "darwin" else ()


def _link_flags() -> tuple[str, ...]:
    return ("-shared", "-pthread")


def _environment_flags(name: str) -> tuple[str, ...]:
    return tuple(shlex.split(os.environ.get(name, "")))


def _compile(writer: Writer, objects: tuple[_Object, ...]) -> None:
    for item in objects:
        writer.build(item.path, "compile", item.source, variables={"flags": _words(item.flags)})


def _link(
    writer: Writer, library: Path, objects: tuple[_Object, ...], libraries: tuple[str, ...]
) -> None:
    paths = [item.path for item in objects]
    writer.build(str(library), "link", paths, variables={"libs": _words(libraries)})


def _words(words: Iterable[str]) -> str:
    """Return `words` quoted for the shell and escaped for ninja."""
    return shlex.join(words).replace("$", "$$")


def _ninja_command() -> str:
    import ninja

    packaged = Path(ninja.BIN_DIR, "ninja")
    if ninja.BIN_DIR and packaged.exists():
        return str(packaged)
    command = shutil.which("ninja")
    if command is None:
        fail("ninja is missing from the build environment: pip install ninja")
    return command
