"""Keeps a fault of CPython 3.11.0 to 3.11.7 away from Triton's parsing of kernels (gh-106905).

Those count a parse's depth in one place for all threads. A garbage collection in the middle of it
may hand over to a thread that parses too, and the first one ends in `SystemError: AST constructor
recursion depth mismatch`: out of a kernel's first launch, or of anything else that compiles it.
"""

from __future__ import annotations

import ast
import functools
import gc
import sys
import threading
from importlib import import_module
from typing import Any

_FAULTY = (3, 11, 0) <= sys.version_info[:3] < (3, 11, 8)

# One at a time, so that the first to end doesn't switch collection on under the next.
_parsing = threading.Lock()


def parse_undisturbed() -> None:
    """Let no collection come into Triton's parsing, of any kernel; on other Pythons do nothing."""
    if not _FAULTY:
        return
    function = import_module("triton.runtime.jit").JITFunction
    # Triton's own functions, which kernels call, are parsed as well: so it is done in the class.
    home = next(cls for cls in function.__mro__ if "parse" in vars(cls))
    if not hasattr(home.parse, "__wrapped__"):
        home.parse = _undisturbed(home.parse)


def _undisturbed(parse: Any) -> Any:
    @functools.wraps(parse)
    def undisturbed(self: Any) -> ast.Module:
        with _parsing:
            collected = gc.isenabled()
            gc.disable()
            try:
                tree: ast.Module = parse(self)
                return tree
            finally:
                if collected:
                    gc.enable()

    return undisturbed
