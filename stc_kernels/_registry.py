"""Makes the ops known to torch: shapes for the compiler, implementations for each device.

The compiled library defines the schemas and the CPU kernels. Everything registered from Python
is registered here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from stc_kernels import _checks, _shapes
from stc_kernels._library import build_info

NAMESPACE = "stc_kernels"

# The same as in csrc/torch/bindings.cpp; used where nothing was compiled.
SCHEMAS = {
    "patch_similarity": "(Tensor current, Tensor reference, Tensor? reference_index=None,"
    ' str metric="cosine") -> Tensor',
    "select_dynamic": "(Tensor current, Tensor reference, int k, Tensor? reference_index=None,"
    ' str metric="cosine") -> (Tensor index, Tensor slot)',
    "gather_tokens": "(Tensor tokens, Tensor index) -> Tensor",
    "merge_tokens": "(Tensor updated, Tensor cached, Tensor slot, Tensor? reference_index=None,"
    " Tensor? residual=None) -> Tensor",
    "merge_tokens_norm": "(Tensor updated, Tensor cached, Tensor slot, Tensor weight,"
    " Tensor? bias=None, Tensor? reference_index=None, Tensor? residual=None, float eps=1e-06)"
    " -> (Tensor merged, Tensor normed)",
    "layer_norm_gather": "(Tensor tokens, Tensor index, Tensor weight, Tensor? bias=None,"
    " Tensor? added=None, float eps=1e-06) -> (Tensor gathered, Tensor normed)",
    "quiet_channels": "(Tensor tokens, int keep) -> Tensor",
    "anchor_scores": "(Tensor tokens, Tensor? temporal_anchor=None,"
    ' str strategy="dual_anchor", float alpha=0.5, Tensor? channels=None) -> Tensor',
    "topk_gather": "(Tensor tokens, Tensor scores, int k, bool largest=True)"
    " -> (Tensor kept, Tensor index)",
    "prune_tokens": "(Tensor tokens, int k, Tensor? temporal_anchor=None,"
    ' str strategy="dual_anchor", float alpha=0.5, Tensor? channels=None)'
    " -> (Tensor kept, Tensor index)",
}

# A Library takes its registrations with it when it is collected, so these live as long as we do.
_libraries: list[torch.library.Library] = []


def define_schemas() -> None:
    """Define the ops' schemas, for an installation without the compiled library."""
    library = torch.library.Library(NAMESPACE, "DEF")
    for name, schema in SCHEMAS.items():
        library.define(name + schema)
    _libraries.append(library)


def register() -> None:
    """Register shape functions for all ops and the implementations that are Python."""
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    devices = ["CUDA"]
    if not build_info()["extension"]:
        devices.append("CPU")
    for name in SCHEMAS:
        naive = getattr(import_module(f"stc_kernels.ops.{name}.naive"), name)
        shapes = getattr(_shapes, name)
        torch.library.register_fake(f"{NAMESPACE}::{name}", _checked(name, shapes), lib=library)
        for device in devices:
            library.impl(name, _checked(name, naive), device)
    _libraries.append(library)


def implementation(op: str, device: str | torch.device = "cpu") -> str:
    """Return what runs when `op` is called on `device`, in words for a person.

    Raises:
        ValueError: `op` is not the name of an op.
    """
    if op not in SCHEMAS:
        raise ValueError(f"op must be one of {', '.join(SCHEMAS)}, but is '{op}'")
    if torch.device(device).type == "cpu" and build_info()["extension"]:
        return f"C++ ({torch.ops.stc_kernels._instruction_set()})"
    return "naive (PyTorch)"


def _checked(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    check = getattr(_checks, name)

    def op(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return run(*args, **kwargs)

    return op
