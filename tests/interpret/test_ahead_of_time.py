"""Every Triton kernel, compiled for GPUs that are not here, at real models' shapes."""

from __future__ import annotations

from itertools import product

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed here: pip install triton")

from stc_kernels import ahead_of_time
from stc_kernels._registry import SCHEMAS

# One dtype a target, and every dtype once.
SOME = {
    ("sm_80", torch.float32),
    ("sm_90", torch.bfloat16),
    ("sm_100", torch.float16),
    ("gfx942", torch.bfloat16),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "dtype"),
    [
        pytest.param(
            *each,
            id=f"{each[0]}-{str(each[1])[6:]}",
            marks=() if each in SOME else pytest.mark.full,
        )
        for each in product(ahead_of_time.TARGETS, ahead_of_time.DTYPES)
    ],
)
def test_no_kernel_spills(target, dtype):
    for name, used in ahead_of_time.resources(dtype, target).items():
        assert used.spills == 0, f"{name}: {used}"
        assert 0 < used.registers <= 512
        # What any of these GPUs gives a program without being asked.
        assert used.shared <= 48 * 1024, f"{name}: {used}"


def test_every_op_is_compiled():
    with torch._subclasses.fake_tensor.FakeTensorMode():
        called = {op for _, op, _ in ahead_of_time._calls(torch.float32)}
    assert called == set(SCHEMAS)


def test_an_unknown_target_is_named():
    launch = next(iter(ahead_of_time.launches(torch.float32).values()))
    with pytest.raises(ValueError, match=r"target must be one of sm_80, .*, but is 'sm_1'"):
        ahead_of_time.compile_for(launch, "sm_1")


def test_amd_kernels_count_no_finished_programs():
    nvidia, amd = (ahead_of_time.launches(torch.float32, nvidia=each) for each in (True, False))
    assert any("p_counters" in launch.kernel.arg_names for launch in nvidia.values())
    for name, launch in amd.items():
        assert "p_counters" not in launch.kernel.arg_names, name
