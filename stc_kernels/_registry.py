"""Makes the ops known to torch: shapes for the compiler, implementations for each device.

The compiled library defines the schemas and the CPU kernels. Everything registered from Python
is registered here and nowhere else: on a GPU an op is its Triton launcher
(``ops/<op>/launch.py``), imported at the first call, or its definition where Triton is not
installed. A compiler that traces an op on GPU tensors sees the launches themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._C import _functorch
from torch._library.triton import set_wrap_triton_enabled
from torch._subclasses.functional_tensor import FunctionalTensorMode

from stc_kernels import _checks, _shapes
from stc_kernels._library import build_info

NAMESPACE = "stc_kernels"

# The same as in csrc/torch/bindings.cpp; used where nothing was compiled.
SCHEMAS = {
    "patch_similarity": "(Tensor current, Tensor reference, Tensor? reference_index=None,"
    ' str metric="cosine") -> Tensor',
    "select_dynamic": "(Tensor current, Tensor reference, SymInt k, Tensor? reference_index=None,"
    ' str metric="cosine") -> (Tensor index, Tensor slot)',
    "gather_tokens": "(Tensor tokens, Tensor index) -> Tensor",
    "merge_tokens": "(Tensor updated, Tensor cached, Tensor slot, Tensor? reference_index=None,"
    " Tensor? residual=None) -> Tensor",
    "merge_tokens_norm": "(Tensor updated, Tensor cached, Tensor slot, Tensor weight,"
    " Tensor? bias=None, Tensor? reference_index=None, Tensor? residual=None, float eps=1e-06)"
    " -> (Tensor merged, Tensor normed)",
    "layer_norm_gather": "(Tensor tokens, Tensor index, Tensor weight, Tensor? bias=None,"
    " Tensor? added=None, float eps=1e-06) -> (Tensor gathered, Tensor normed)",
    "quiet_channels": "(Tensor tokens, SymInt keep) -> Tensor",
    "anchor_scores": "(Tensor tokens, Tensor? temporal_anchor=None,"
    ' str strategy="dual_anchor", float alpha=0.5, Tensor? channels=None) -> Tensor',
    "topk_gather": "(Tensor tokens, Tensor scores, SymInt k, bool largest=True)"
    " -> (Tensor kept, Tensor index)",
    "prune_tokens": "(Tensor tokens, SymInt k, Tensor? temporal_anchor=None,"
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
    for name in SCHEMAS:
        op = f"{NAMESPACE}::{name}"
        naive = getattr(import_module(f"stc_kernels.ops.{name}.naive"), name)
        torch.library.register_fake(op, _checked(name, getattr(_shapes, name)), lib=library)
        if not build_info()["extension"]:
            library.impl(name, _checked(name, naive), "CPU")
        if _has_triton():
            library.impl(name, _checked(name, _launched(name)), "CUDA")
            rule = _traced(name)
            torch.library.register_torch_dispatch(op, FunctionalTensorMode, rule, lib=library)
        else:
            library.impl(name, _checked(name, naive), "CUDA")
    _libraries.append(library)


def implementation(op: str, device: str | torch.device = "cpu") -> str:
    """Return what runs when `op` is called on `device`, in words for a person.

    Raises:
        ValueError: `op` is not the name of an op, or `device` not one that ops run on.
    """
    if op not in SCHEMAS:
        raise ValueError(f"op must be one of {', '.join(SCHEMAS)}, but is '{op}'")
    kind = str(device).partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, but is {str(device)!r}")
    if kind == "cpu" and build_info()["extension"]:
        return f"C++ ({torch.ops.stc_kernels._instruction_set()})"
    return "Triton" if kind == "cuda" and _has_triton() else "naive (PyTorch)"


def refuse_derivatives(op: str, *arguments: Any) -> None:
    """Raise for an argument that a transform of `torch.func`, or forward mode, differentiates by.

    The op's own check doesn't see these: a transform takes them apart before any kernel runs.

    Raises:
        RuntimeError: in the op's own words.
    """
    if torch.compiler.is_compiling():
        return
    if _functorch.peek_interpreter_stack() is None and forward_ad._current_level < 0:
        return
    schema = getattr(torch.ops.stc_kernels, op).default._schema
    for declared, argument in zip(schema.arguments, arguments, strict=True):
        if isinstance(argument, Tensor) and _is_differentiated(argument):
            _checks.refuse_grad(op, declared.name)


def _is_differentiated(tensor: Tensor) -> bool:
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
        return True
    if not torch.is_grad_enabled():
        return False
    while not tensor.requires_grad and _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor.requires_grad


def _checked(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    check = getattr(_checks, name)

    def op(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return run(*args, **kwargs)

    return op


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _launcher(name: str) -> Callable[..., Any]:
    launcher: Callable[..., Any] = getattr(import_module(f"stc_kernels.ops.{name}.launch"), name)
    return launcher


def _launched(name: str) -> Callable[..., Any]:
    def op(*args: Any, **kwargs: Any) -> Any:
        # Triton launches on the current device, whatever its tensors are on.
        with torch.cuda.device(_gpu_of((*args, *kwargs.values()))), set_wrap_triton_enabled(False):
            return _launcher(name)(*args, **kwargs)

    return op


def _traced(name: str) -> Callable[..., Any]:
    # As torch.library.triton_op does it, but for GPU tensors alone: on a CPU the C++ op stays.
    def rule(mode: Any, op: Any, types: Any, args: Any, kwargs: Any) -> Any:
        kwargs = kwargs or {}
        on_gpu = _gpu_of((*args, *kwargs.values())) is not None
        if not on_gpu or not torch._functorch.config.decompose_custom_triton_ops:
            return mode.__torch_dispatch__(op, types, args, kwargs)
        with mode:
            return _launcher(name)(*args, **kwargs)

    return rule


def _gpu_of(values: Iterable[Any]) -> torch.device | None:
    tensors = (value for value in values if isinstance(value, Tensor))
    return next((tensor.device for tensor in tensors if tensor.is_cuda), None)
