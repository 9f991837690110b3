"""Finds the compiled ops and registers them with torch."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

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


@cache
def load() -> None:
    """Register the ops with torch, once a process; what is not built is an ``ImportError``."""
    from stc_kernels import _registry

    if build_info()["extension"]:
        torch.ops.load_library(str(_compiled_library()))
    else:
        _registry.define_schemas()
    _registry.register()


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


def _compiled_library() -> Path:
    suffix = "dylib" if sys.platform == "darwin" else "so"
    path = _PACKAGE / f"libstc_kernels.{suffix}"
    if not path.exists():
        raise ImportError(
            f"stc_kernels was built with its compiled ops, but {path} is missing: "
            "install the package again"
        )
    return path
