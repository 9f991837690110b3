"""The ops under malformed arguments, from many threads, and over many calls."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

import stc_kernels
from stc_kernels import _registry
from stc_kernels.testing import random_tokens

MALFORMED = textwrap.dedent(
    """
    # Feeds one op with arguments of every wrong kind; anything but an error or a result ends us.
    import random
    import sys

    import torch
    import stc_kernels

    op, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    random.seed(seed)
    torch.manual_seed(seed)
    schema = getattr(torch.ops.stc_kernels, op).default._schema

    def tensor():
        shape = random.choice([(), (0,), (3,), (2, 6), (2, 3), (2, 6, 4), (2, 3, 4), (0, 6, 4),
                               (2, 6, 0), (2, 0, 4), (1, 6, 4), (3, 6, 4), (1, 1, 1, 1)])
        dtype = random.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16,
                               torch.float64, torch.int64, torch.int64, torch.int32, torch.int32,
                               torch.bool, torch.complex64])
        x = (torch.randn(shape) * random.choice([1, 3, 1e10])).to(dtype)
        kind = random.random()
        if kind < 0.05 and x.is_floating_point():
            x.requires_grad_()
        elif kind < 0.1:
            x = x.to("meta")
        elif kind < 0.15 and x.dim() > 1:
            x = x.transpose(0, -1)
        elif kind < 0.2:
            x = x.expand(2, *x.shape)
        elif kind < 0.23 and x.dim() == 2:
            x = x.to_sparse()
        return x

    def value(kind):
        if random.random() < 0.1:
            return random.choice([None, "x", 1.5, [], object(), -1, True, {}, 2**70])
        if "Tensor" in kind:
            return tensor() if "Optional" not in kind or random.random() < 0.5 else None
        if kind == "int":
            return random.choice([-(2**63), -1, 0, 1, 2, 3, 7, 2**31, 2**63 - 1])
        if kind == "float":
            return random.choice([0.5, -1.0, 2.0, float("nan"), float("inf"), 0])
        if kind == "bool":
            return random.choice([True, False])
        return random.choice(["cosine", "l1", "gaussian", "dual_anchor", "", "a\\0b", "x" * 5000])

    refused = answered = 0
    for _ in range(count):
        wanted = len(schema.arguments)
        given = random.randint(max(0, wanted - 4), wanted + (random.random() < 0.05))
        kinds = [str(a.type) for a in schema.arguments] + ["int"]
        args = [value(kinds[i]) for i in range(given)]
        try:
            getattr(stc_kernels, op)(*args)
            answered += 1
        except (ValueError, TypeError, RuntimeError, NotImplementedError, OverflowError) as error:
            assert str(error), "an error without words"
            refused += 1
    print(refused, answered)
    """
)


@pytest.mark.parametrize("op", tuple(_registry.SCHEMAS))
def test_malformed_arguments_end_in_clean_errors(op, seed):
    done = subprocess.run(
        [sys.executable, "-c", MALFORMED, op, "500", str(seed)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-2000:]}"
    refused, answered = map(int, done.stdout.split())
    assert refused + answered == 500 and refused > 250


def calls(seed: int) -> list[torch.Tensor]:
    """Run every op once on inputs of a seed and return all results."""
    g = torch.Generator().manual_seed(seed)
    x, reference = (random_tokens(3, 40, 48, generator=g) for _ in "ab")
    scale = torch.randn(48, generator=g)
    index, slot = stc_kernels.select_dynamic(x, reference, 9)
    updated = stc_kernels.gather_tokens(x, index)
    return [
        index,
        slot,
        updated,
        stc_kernels.patch_similarity(x, reference),
        stc_kernels.merge_tokens(updated, reference, slot, None, x),
        *stc_kernels.merge_tokens_norm(updated, reference, slot, scale, scale, None, x),
        *stc_kernels.layer_norm_gather(x, index, scale, scale, updated),
        stc_kernels.quiet_channels(x, 20),
        stc_kernels.anchor_scores(x, scale, "gaussian"),
        *stc_kernels.topk_gather(x, stc_kernels.anchor_scores(x), 9),
        *stc_kernels.prune_tokens(x, 9, scale),
    ]


def test_eight_threads_at_once():
    expected = [calls(seed) for seed in range(8)]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for _ in range(25):
            for actual, right in zip(calls(seed), expected[seed], strict=True):
                if not torch.allclose(actual.float(), right.float(), rtol=1e-5, atol=1e-5):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def mapping_flags(address: int) -> list[str]:
    """Return the flags of this process's mapping that holds an address."""
    here = False
    with open("/proc/self/smaps", encoding="ascii") as smaps:
        for line in smaps:
            first = line.split()[0]
            if "-" in first and not first.endswith(":"):
                begin, end = (int(bound, 16) for bound in first.split("-"))
                here = begin <= address < end
            elif here and first == "VmFlags:":
                return line.split()[1:]
    raise AssertionError(f"{address:#x} is in no mapping")


@pytest.mark.alone  # memory that had been advised once is given out again as it was
@pytest.mark.skipif(
    not os.path.exists("/sys/kernel/mm/transparent_hugepage") or not os.path.exists("/proc/self"),
    reason="no huge pages here",
)
@pytest.mark.skipif(not stc_kernels.build_info()["extension"], reason="no compiled code")
def test_large_results_ask_for_huge_pages():
    tokens = torch.ones(1, 1, 2048).expand(10, 1024, 2048)
    for frames, asked in ((3, False), (10, True)):
        result = stc_kernels.gather_tokens(
            tokens[:frames], torch.arange(1024).expand(frames, 1024).contiguous()
        )
        middle = result.data_ptr() + result.nbytes // 2
        assert ("hg" in mapping_flags(middle)) == asked
        assert (result == 1).all()


def resident_bytes() -> int:
    """Return this process's memory, from the kernel."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.alone
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc to read memory from")
def test_memory_is_flat_over_ten_thousand_calls():
    # Twelve calls a round, and an error: a leak of one tensor a call would be 23 MB.
    def rounds(count: int) -> None:
        for seed in range(count):
            calls(seed % 3)
            with pytest.raises(ValueError, match="k must be in"):
                stc_kernels.prune_tokens(torch.ones(1, 2, 3), 5)

    rounds(100)
    before = resident_bytes()
    rounds(900)
    assert resident_bytes() - before < 8 * 2**20
