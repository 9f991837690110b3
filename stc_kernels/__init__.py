"""Kernels of Streaming Token Compression (arXiv 2512.00891) as torch ops.

The ops live in ``torch.ops.stc_kernels``; the functions of the same names here take the same
arguments and raise ``ValueError`` and ``TypeError`` where the raw ops raise ``RuntimeError``.
Importing this package imports no torch (so that `stc_kernels.interop.numpy` stays light) and
starts no GPU context: the ops are registered once torch is imported, by whoever does it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stc_kernels._library import build_info, register_with_torch

if TYPE_CHECKING:
    from stc_kernels import layers
    from stc_kernels._registry import implementation
    from stc_kernels.ops.anchor_scores import anchor_scores
    from stc_kernels.ops.gather_tokens import gather_tokens
    from stc_kernels.ops.layer_norm_gather import layer_norm_gather
    from stc_kernels.ops.merge_tokens import merge_tokens
    from stc_kernels.ops.merge_tokens_norm import merge_tokens_norm
    from stc_kernels.ops.patch_similarity import patch_similarity
    from stc_kernels.ops.prune_tokens import prune_tokens
    from stc_kernels.ops.quiet_channels import quiet_channels
    from stc_kernels.ops.select_dynamic import select_dynamic
    from stc_kernels.ops.topk_gather import topk_gather
    from stc_kernels.tuning import warmup

__version__ = "0.1.0"

__all__ = [
    "anchor_scores",
    "build_info",
    "gather_tokens",
    "implementation",
    "layer_norm_gather",
    "layers",
    "merge_tokens",
    "merge_tokens_norm",
    "patch_similarity",
    "prune_tokens",
    "quiet_channels",
    "select_dynamic",
    "topk_gather",
    "warmup",
]

_HOMES = {"implementation": "stc_kernels._registry", "warmup": "stc_kernels.tuning"}

register_with_torch()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'stc_kernels' has no attribute '{name}'")
    import importlib

    # First torch, whose import registers the ops: nothing of ours may be half imported then.
    importlib.import_module("torch")
    if name == "layers":
        return importlib.import_module("stc_kernels.layers")
    home = _HOMES.get(name, f"stc_kernels.ops.{name}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
