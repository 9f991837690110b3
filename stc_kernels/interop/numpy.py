"""`stc_numpy` under its former name, for this version alone.

It imports torch, since its parent package does; `stc_numpy` does not.
"""

from __future__ import annotations

import warnings

from stc_numpy import frame_difference, patch_similarity, select_dynamic, topk_gather

__all__ = ["frame_difference", "patch_similarity", "select_dynamic", "topk_gather"]

warnings.warn(
    "stc_kernels.interop.numpy is now stc_numpy, which imports no torch; "
    "the old name goes in the next version",
    DeprecationWarning,
    stacklevel=2,
)
