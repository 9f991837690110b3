"""Compile the Triton kernels for GPUs that are not here, and say what each would use of one.

``python -m stc_kernels.ahead_of_time`` prints the table of docs/kernels.md. Needs triton, no GPU.
The launchers themselves are run, on tensors without data, so that what is compiled is what they
would launch at real models' shapes.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from stc_kernels import _launching

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Launch:
    """A kernel as a launcher launches it."""

    kernel: Any
    arguments: tuple[Any, ...]
    meta: dict[str, Any]


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel uses: registers a thread, spills (stores of one), shared bytes."""

    registers: int
    spills: int
    shared: int
    warps: int


def launches(dtype: torch.dtype, *, nvidia: bool = True) -> dict[str, Launch]:
    """Return every kernel's launches at the shapes of SigLIP-so400m and LLaVA-OneVision.

    Keyed by the kernel's name and, where there are several, what is particular.

    Args:
        dtype: of the tokens.
        nvidia: whether they are launched on an NVIDIA GPU; else on one of AMD's.
    """
    found: dict[str, Launch] = {}
    with FakeTensorMode():
        for note, op, arguments in _calls(dtype):
            for launch in _record(op, arguments, nvidia):
                name = launch.kernel.__name__
                found.setdefault(f"{name} ({note})" if note else name, launch)
    return found


def resources(dtype: torch.dtype, target: str) -> dict[str, Resources]:
    """Compile every kernel's launches for a target and return what each uses, by its name.

    Raises:
        ValueError: an unknown target.
    """
    found = launches(dtype, nvidia=_is_nvidia(target))
    # Triton's compiler releases the interpreter's lock, so threads do compile at once.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        used = threads.map(lambda launch: compile_for(launch, target), found.values())
        return dict(zip(found, used, strict=True))


def compile_for(launch: Launch, target: str) -> Resources:
    """Compile a launch for a GPU architecture of `TARGETS` and return what it uses.

    Raises:
        ValueError: an unknown target.
    """
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, but is '{target}'")
    # Imported here and by name: triton is optional, and so are its types.
    triton_compiler = import_module("triton.compiler")
    gpu_target = import_module("triton.backends.compiler").GPUTarget
    source = triton_compiler.ASTSource(launch.kernel, *_specialised(launch))
    nvidia = _is_nvidia(target)
    gpu = gpu_target("cuda", int(target[3:]), 32) if nvidia else gpu_target("hip", target, 64)
    warps = launch.meta["num_warps"]
    options = {"num_warps": warps} | _launching.compiler_options(nvidia=nvidia)
    compiled = triton_compiler.compile(source, target=gpu, options=options)
    read = _nvidia_resources if nvidia else _amd_resources
    registers, spills = read(compiled)
    return Resources(registers, spills, compiled.metadata.shared, warps)


def table(dtypes: tuple[torch.dtype, ...] = DTYPES) -> str:
    """Return a Markdown table of all kernels: registers, spills and shared memory a target."""
    head = "| kernel | dtype | warps | " + " | ".join(TARGETS) + " |"
    lines = [head, "| --- | --- | --- |" + " --- |" * len(TARGETS)]
    for dtype in dtypes:
        columns = [resources(dtype, target) for target in TARGETS]
        for name in dict.fromkeys(name for column in columns for name in column):
            used = [column.get(name) for column in columns]
            warps = next(each.warps for each in used if each is not None)
            cells = ["" if r is None else f"{r.registers} / {r.spills} / {r.shared}" for r in used]
            kind = str(dtype).removeprefix("torch.")
            lines.append(f"| `{name}` | {kind} | {warps} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _calls(dtype: torch.dtype) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    def tensor(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="cuda")

    frames, k = 16, 182
    x = tensor(frames, 729, 1152)
    chosen = tensor(frames, k, 1152)
    references = tensor(8, 729, 1152)
    held = tensor(frames, dtype=torch.int64)
    index = tensor(frames, k, dtype=torch.int64)
    slot = tensor(frames, 729, dtype=torch.int32)
    weight, bias = tensor(1152), tensor(1152)
    for metric in ("cosine", "dot", "l1", "l2"):
        yield metric, "patch_similarity", (x, references, held, metric)
    yield "729 tokens", "select_dynamic", (x, references, k, held)
    long = tensor(frames, 4096, 1280)
    yield "4096 tokens", "select_dynamic", (long, long, 1024)
    yield "", "gather_tokens", (x, index)
    yield "", "merge_tokens", (chosen, references, slot, held, x)
    yield "", "merge_tokens_norm", (chosen, references, slot, weight, bias, held, x)
    yield "", "layer_norm_gather", (x, index, weight, bias, chosen)
    z = tensor(frames, 196, 3584)
    past, some = tensor(frames, 3584, dtype=torch.float32), tensor(1792, dtype=torch.int64)
    yield "", "quiet_channels", (z, 1792)
    yield "dual anchors", "prune_tokens", (z, 64, past)
    yield "gaussian", "prune_tokens", (z, 64, tensor(frames, 1792), "gaussian", 0.5, some)
    wide = tensor(frames, 4096, 8192)
    yield "dual anchors, 4096 tokens", "prune_tokens", (wide, 1024)
    yield "gaussian scores", "anchor_scores", (z, past, "gaussian")
    scores = tensor(frames, 196, dtype=torch.float32)
    yield "196 tokens", "topk_gather", (z, scores, 64)
    yield "4096 tokens", "topk_gather", (wide, tensor(frames, 4096, dtype=torch.float32), 1024)


def _is_nvidia(target: str) -> bool:
    return target.startswith("sm_")


def _record(op: str, arguments: tuple[Any, ...], nvidia: bool) -> list[Launch]:
    launcher: Callable[..., Any] = getattr(import_module(f"stc_kernels.ops.{op}.launch"), op)
    recorded: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: Any) -> Callable[..., None]:
            return lambda *args, **meta: recorded.append(Launch(self.kernel, args, meta))

    before = _launching.wrap, _launching.nvidia
    _launching.wrap, _launching.nvidia = Recorder, nvidia
    try:
        launcher(*arguments)
    finally:
        _launching.wrap, _launching.nvidia = before
    return recorded


def _specialised(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[Any, Any]]:
    # As Triton itself specialises at a launch: 1 is a constant, multiples of 16 are known to be.
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[Any, Any] = {}
    values = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)) | launch.meta
    for position, parameter in enumerate(launch.kernel.params):
        value = values[parameter.name]
        specialise = not parameter.do_not_specialize
        if parameter.is_constexpr or (specialise and type(value) is int and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            continue
        if isinstance(value, Tensor):
            signature[parameter.name] = _POINTERS[value.dtype]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if value < 2**31 else "i64"
        divisible = isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0)
        if specialise and divisible:
            attributes[(position,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def _nvidia_resources(compiled: Any) -> tuple[int, int]:
    tools = Path(str(import_module("triton").__file__)).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = _output(tools / "cuobjdump", "--dump-resource-usage", file.name)
        used = {name: int(count) for name, count in re.findall(r"\b(REG|STACK):(\d+)", text)}
        # Not every stack is one of spills: what counts is what is stored to it.
        code = _output(tools / "nvdisasm", file.name) if used["STACK"] else ""
    return used["REG"], len(re.findall(r"\bSTL\b", code))


def _output(tool: Path, *arguments: str) -> str:
    command = [str(tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _amd_resources(compiled: Any) -> tuple[int, int]:
    found = re.findall(r"\.(vgpr_count|[vs]gpr_spill_count):\s*(\d+)", compiled.asm["amdgcn"])
    used = {name: int(count) for name, count in found}
    return used["vgpr_count"], used["vgpr_spill_count"] + used["sgpr_spill_count"]


if __name__ == "__main__":
    print(table())
