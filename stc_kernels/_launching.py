"""What every Triton launcher does the same: one way to launch, grids, strides, references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import wrap_triton

from stc_kernels._parsing import parse_undisturbed
from stc_kernels._sizes import known

# Every launch, and whatever compiles a kernel without one, comes after the import of this module.
parse_undisturbed()

# So many tokens' keys a warp holds in registers while it chooses among them.
_TOKENS_PER_WARP = 512

# Registers a thread on an NVIDIA GPU: left to itself, ptxas spills some to fit one more block.
MAX_REGISTERS = 128

# What makes a kernel visible to a tracer; `ahead_of_time` puts its own here, to see the launches.
wrap: Callable[[Any], Any] = wrap_triton

# Whose GPUs the kernels are launched on; `ahead_of_time` puts its own here, to compile for others.
nvidia: bool = torch.version.hip is None


def counts_finished_programs() -> bool:
    """Tell whether the last program to finish a frame may go on with what the others stored.

    On AMD the wave that counts waits for its own stores alone (gfx942: no `s_waitcnt vmcnt(0)` of
    the other waves comes before the barrier), so there a launch of its own goes on.
    """
    return nvidia


def launch(kernel: Any, programs: Any, *args: Any, **meta: Any) -> None:
    """Launch `programs` programs of a Triton kernel; a tracer sees the launch itself.

    None are launched where `programs` is 0, so that no launcher asks for the number of frames:
    under a tracer the question would fix it.
    """
    # Under TRITON_INTERPRET a kernel is no JITFunction, and older torch refuses to wrap it.
    interpreted = type(kernel).__name__ == "InterpretedFunction"
    target = kernel if interpreted else wrap(kernel)
    # A tracer knows none of the options.
    if target is kernel and not interpreted:
        meta |= compiler_options(nvidia=nvidia)
    target[(programs,)](*args, **meta)


def compiler_options(*, nvidia: bool) -> dict[str, Any]:
    """Return how the kernels are to be compiled, beside their block sizes."""
    # Triton 3.9 warns of its own default of fusing a·b + c, which 3.10 gives up.
    options: dict[str, Any] = {"enable_fp_fusion": True}
    return options | ({"maxnreg": MAX_REGISTERS} if nvidia else {})


def blocks(count: Any, size: int) -> Any:
    """Return how many blocks of `size` hold `count`, which may be a tracer's."""
    return (count + size - 1) // size


def next_power_of_2(count: int) -> int:
    """Return the lowest power of two that is not below `count`."""
    return 1 << (count - 1).bit_length()


def unit_channels(tensor: Tensor) -> Tensor:
    """Return the tensor itself where its channels are next to each other, else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def reference_stride(reference: Tensor) -> int:
    """Return the stride over references, 0 where one serves all frames."""
    return 0 if known(reference.shape[0] == 1) else reference.stride(0)


def selection_warps(tokens: int, warps: int) -> int:
    """Return enough warps for a choice among `tokens` tokens in registers."""
    return min(16, max(warps, next_power_of_2(tokens) // _TOKENS_PER_WARP))
