"""Finds and loads the compiled ops, once, when torch is there."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

_PACKAGE = Path(__file__).resolve().parent
_NOT_BUILT = (
    f"stc_kernels is being imported from its source tree ({_PACKAGE.parent}), which has not been "
    "built: run `pip install -e .` there, or start Python in another directory to use the "
    "installed package"
)


def build_info() -> dict[str, Any]:
    """Return what was built: ``extension`` (bool), ``torch``, ``compiler`` and ``isas``."""
    try:
        from stc_kernels import _build_info
    except ImportError:
        raise ImportError(_NOT_BUILT) from None
    return {
        "extension": _build_info.EXTENSION,
        "torch": _build_info.TORCH_VERSION,
        "compiler": _build_info.COMPILER,
        "isas": tuple(_build_info.ISAS),
    }


def register_with_torch() -> None:
    """Register the ops now if torch is imported, else as soon as it is."""
    build_info()
    if "torch" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterTorch())


def public_error(error: RuntimeError) -> Exception:
    """Return the exception that a public function raises for a raw op's `error`.

    A wrong dtype or a wrong type of argument is a ``TypeError``, any other bad argument a
    ``ValueError``, with the op's own words; what is not about arguments stays as it is.
    """
    text = str(error)
    if text.startswith("stc_kernels."):
        wrong_type = " must have dtype " in text or " must be a tensor, " in text
        return TypeError(text) if wrong_type else ValueError(text)
    if text.startswith("stc_kernels::"):
        return TypeError(text.partition("\n")[0])
    if isinstance(error, NotImplementedError) and "stc_kernels::" in text:
        # No tensor at all, a sparse one, or a device without kernels. torch goes on to list all
        # it has; "(e.g., ..." ends no sentence.
        return TypeError(re.split(r"(?<!g)\.\s", text, maxsplit=1)[0])
    return error


@cache
def _register() -> None:
    import torch

    from stc_kernels import _registry

    if build_info()["extension"]:
        torch.ops.load_library(str(_compiled_library()))
    else:
        _registry.define_schemas()
    _registry.register()


def _compiled_library() -> Path:
    suffix = "dylib" if sys.platform == "darwin" else "so"
    path = _PACKAGE / f"libstc_kernels.{suffix}"
    if not path.exists():
        raise ImportError(
            f"stc_kernels was built with its compiled ops, but {path} is missing: "
            "install the package again"
        )
    return path


class _AfterTorch(importlib.abc.MetaPathFinder):
    """Lets torch be imported as always, then registers the ops and steps aside."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torch":
            return None
        # Being asked is not being imported: many look whether torch is there long before.
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _ThenRegister(spec.loader, self)
                return spec
        return None


class _ThenRegister(importlib.abc.Loader):
    def __init__(self, loader: Any, finder: _AfterTorch) -> None:
        self._loader = loader
        self._finder = finder

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps its own loader: only this one import is watched.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        _register()
