"""What is said where there is no memory: how many bytes, in torch's own words."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import stc_kernels

pytestmark = pytest.mark.skipif(
    not stc_kernels.build_info()["extension"], reason="no compiled code: the words are torch's"
)

# More than a process can address, in a tensor of a few bytes.
SIDE = 10**7


def huge(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(1, dtype=dtype).expand(shape)


TOKENS = huge(SIDE, SIDE, 1)
INDEX = huge(SIDE, SIDE, dtype=torch.int64)
SLOT = huge(SIDE, SIDE, dtype=torch.int32)
CHANNELS = huge(1, 1, SIDE * SIDE)
HALVES = huge(1, 1, SIDE * SIDE, dtype=torch.float16)


@pytest.mark.parametrize(
    ("op", "args", "item"),
    [
        ("patch_similarity", (TOKENS, TOKENS), 4),
        ("patch_similarity", (HALVES, HALVES), 2),
        ("select_dynamic", (TOKENS, TOKENS, 1), 4),
        ("gather_tokens", (TOKENS, INDEX), 8),
        ("merge_tokens", (TOKENS, TOKENS[:1], SLOT), 4),
        ("merge_tokens_norm", (TOKENS, TOKENS[:1], SLOT, torch.ones(1)), 4),
        ("layer_norm_gather", (TOKENS, INDEX, torch.ones(1)), 8),
        ("quiet_channels", (CHANNELS, 1), 4),
        ("anchor_scores", (TOKENS,), 4),
        ("topk_gather", (TOKENS, huge(SIDE, SIDE), 1), 4),
        ("prune_tokens", (TOKENS, 1), 4),
    ],
)
def test_more_than_there_can_be(op, args, item):
    text = (
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate "
        f"{item * SIDE * SIDE} bytes. Error code 12 (Cannot allocate memory)"
    )
    for call in (getattr(stc_kernels, op), getattr(torch.ops.stc_kernels, op)):
        with pytest.raises(RuntimeError) as raised:
            call(*args)
        assert str(raised.value) == text


def test_more_than_can_be_counted():
    # 2⁶² channels of four bytes, eight times over.
    with pytest.raises(RuntimeError, match=r"allocate more than 9223372036854775807 bytes\."):
        stc_kernels.gather_tokens(huge(1, 1, 2**62), torch.zeros(1, 8, dtype=torch.int64))


def test_no_error_names_a_path_of_the_machine_that_built():
    library = (Path(stc_kernels.__file__).parent / "libstc_kernels.so").read_bytes()
    assert b"torch/csrc/stable/ops.h" in library
    assert not re.search(rb"/torch/csrc/stable/", library)


# Calls each op with ever more memory to be had, until there is enough: each thing that it allocates
# is missing in its turn. Prints what was said.
SWEEP = textwrap.dedent(
    """
    import os, resource
    import torch
    import stc_kernels

    def tokens(f, t, c):
        return torch.randn(f, t, c).half()

    # Megabytes each, which no hole in the heap has room for.
    x, wide = tokens(16, 131072, 4), tokens(1, 1, 2**21)
    weight = torch.ones(2**21, dtype=torch.float16)
    index = torch.arange(65536).expand(16, 65536)
    slot = torch.full((16, 131072), -1, dtype=torch.int32)
    past, some = tokens(16, 2, 1)[..., 0], torch.arange(0, 4, 2)
    calls = {
        "patch_similarity": (x.transpose(1, 2).contiguous().transpose(1, 2), x),
        "select_dynamic": (x, x, 65536),
        "gather_tokens": (x, index),
        "merge_tokens": (x[:, :9], x, slot, None, x),
        "merge_tokens_norm": (wide, wide, slot[:1, :1], weight, weight),
        "layer_norm_gather": (wide, index[:1, :1], weight, weight, wide),
        "quiet_channels": (wide, 9),
        "anchor_scores": (x, past, "gaussian", 0.5, some),
        "topk_gather": (x, x[..., 0].float(), 65536),
        "prune_tokens": (wide, 1, weight, "gaussian", 0.5, torch.arange(2**21)),
    }
    for op, arguments in calls.items():
        getattr(torch.ops.stc_kernels, op)(*arguments)  # whatever is allocated once and for all
    unlimited = resource.getrlimit(resource.RLIMIT_AS)[1]
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    for op, arguments in calls.items():
        for more in range(2**20, 2**28, 2**21):
            # A process each, so that no try finds what another has left in the heap.
            child = os.fork()
            if child == 0:
                resource.setrlimit(resource.RLIMIT_AS, (size + more, unlimited))
                try:
                    getattr(torch.ops.stc_kernels, op)(*arguments)
                    os._exit(0)
                except Exception as error:
                    print(op, f"{type(error).__name__}: {error}", flush=True)
                    os._exit(1)
            failed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert failed in (0, 1), (op, more, failed)
            if not failed:
                break
    """
)

# Among what each op allocates: a result, a copy of an argument, or scratch.
BYTES = {
    "patch_similarity": 16 * 131072 * 4 * 2,
    "select_dynamic": 16 * 131072 * 4,
    "gather_tokens": 16 * 65536 * 4 * 2,
    "merge_tokens": 16 * 131072 * 4 * 2,
    "merge_tokens_norm": 2**21 * 4,
    "layer_norm_gather": 2**21 * 4,
    "quiet_channels": 2**21 * 8,
    "anchor_scores": 16 * 131072 * 4,
    "topk_gather": 16 * 65536 * 4 * 2,
    "prune_tokens": 2**21 * 4,
}


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_whatever_is_missing():
    # Large things are asked of the system, each by itself; small ones come out of the heap.
    memory = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", SWEEP],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **memory, "OMP_NUM_THREADS": "1"},
    )
    text = (
        r"(\w+) RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate "
        r"(\d+) bytes\. Error code 12 \(Cannot allocate memory\)"
    )
    asked: dict[str, set[int]] = {op: set() for op in BYTES}
    for line in done.stdout.splitlines():
        match = re.fullmatch(text, line)
        assert match, line
        asked[match[1]].add(int(match[2]))
    for op, count in BYTES.items():
        assert count in asked[op], (op, asked[op])
