"""Arrays of other frameworks as tensors."""

from __future__ import annotations

from typing import Any

from torch.utils.dlpack import from_dlpack


def as_tensor(op: str, name: str, array: Any) -> Any:
    """Return an array's memory as a tensor; what doesn't speak DLPack stays as it is.

    Raises:
        ValueError: negative strides, in the words of `op` about its argument `name`.
    """
    if not hasattr(array, "__dlpack__"):
        return array
    strides = getattr(array, "strides", None)
    # torch ends the process over these, where NumPy and CuPy hand them out.
    if isinstance(strides, tuple) and min(strides, default=0) < 0:
        raise ValueError(
            f"stc_kernels.{op}: {name} must have no negative strides (a copy has none), "
            f"but has strides {list(strides)}"
        )
    return from_dlpack(array)
