"""What a command needs of this machine: packages, the compiled ops, memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from types import ModuleType

from stc_stream.cli.messages import fail

# What the commands import, and the names that pip knows them by.
NEEDED = {
    "av": "av",
    "PIL": "pillow",
    "matplotlib": "matplotlib",
    "jinja2": "jinja2",
    "transformers": "transformers",
}
TOO_LARGE = "there is not enough memory for this model: choose a smaller one, or another --dtype"


def require_modules(command: str, modules: Sequence[str]) -> None:
    missing = [NEEDED[name] for name in modules if not importlib.util.find_spec(name)]
    if missing:
        fail(
            f"{command} needs packages that are not installed ({', '.join(missing)}): "
            "pip install 'stc-kernels[video]', or, in a clone of it, pip install '.[video]'"
        )


def kernels() -> ModuleType:
    try:
        import stc_kernels
    except ImportError as error:
        fail(str(error))
    return stc_kernels


def memory_errors() -> tuple[type[BaseException], ...]:
    from torch import OutOfMemoryError

    return OutOfMemoryError, MemoryError
