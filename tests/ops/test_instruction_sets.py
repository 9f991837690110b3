"""Every instruction set's kernels give what the definitions give, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

import stc_kernels

CHECK = textwrap.dedent(
    """
    import sys
    import torch
    import stc_kernels
    from stc_kernels.testing import DTYPES, integer_tokens, naive, random_tokens

    wanted, seed = sys.argv[1], int(sys.argv[2])
    if stc_kernels.implementation("prune_tokens") != f"C++ ({wanted})":
        sys.exit(77)
    g = torch.Generator().manual_seed(seed)
    ops = torch.ops.stc_kernels

    def same(op, *args, **close):
        actual, expected = getattr(ops, op)(*args), naive(op)(*args)
        if isinstance(actual, torch.Tensor):
            actual, expected = [actual], [expected]
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, **(close or dict(rtol=0, atol=0)))

    for dtype in DTYPES:
        for channels in (1, 5, 16, 33, 72, 200):
            x = random_tokens(3, 21, channels, dtype, generator=g)
            y = random_tokens(3, 21, channels, dtype, generator=g)
            for metric in ("cosine", "dot", "l1", "l2"):
                same("patch_similarity", x, y, None, metric, rtol=1e-5, atol=1e-4)
                whole = [integer_tokens(3, 21, channels, dtype, generator=g) for _ in "ab"]
                same("select_dynamic", *whole, 6, None, metric)
            slot = torch.full((3, 21), -1, dtype=torch.int32)
            slot[:, ::5] = torch.arange(5, dtype=torch.int32)
            same("merge_tokens", x[:, :5], y, slot, None, x)
            index, scale = torch.arange(6).expand(3, 6), torch.randn(channels, generator=g)
            places = 2e-5 if dtype == torch.float32 else 2e-2
            within = dict(rtol=places, atol=places)
            same("layer_norm_gather", x, index, scale, scale, y[:, :6], **within)
            same("merge_tokens_norm", x[:, :5], y, slot, scale, scale, None, x, **within)
            same("gather_tokens", x, torch.randint(0, 21, (3, 4), generator=g))
            same("quiet_channels", x, channels)
            for strategy in ("dual_anchor", "gaussian"):
                for anchor in (None, torch.randn(channels, generator=g)):
                    same("anchor_scores", x, anchor, strategy, rtol=2e-5, atol=2e-5)
            scores = torch.randint(-3, 4, (3, 21), generator=g).float()
            same("topk_gather", x, scores, 8)

    # All that is below 2^-14 in float16, for a processor that takes float32's subnormals for zero,
    # as any library built with -ffast-math may have set it.
    assert torch.set_flush_denormal(True) and (torch.tensor(1e-39) * 1 == 0)
    half = torch.float16
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(half)
    every = every[every.isfinite() & (every.abs() < 0.01)]
    for channels in (1, 5, 16, 33, 72, 200):
        x = every[torch.randint(0, len(every), (3, 21, channels), generator=g)]
        y = every[torch.randint(0, len(every), (3, 21, channels), generator=g)] * 2**-9
        scale = every[torch.randint(0, len(every), (channels,), generator=g)]
        index = torch.arange(21).expand(3, 21)
        for metric in ("cosine", "dot", "l1", "l2"):
            # A cosine near 0 is a difference of products as large as 1, whatever the tokens' size.
            least = (1e-7, 1e-7) if metric == "cosine" else (1e-8, 1e-11)
            same("patch_similarity", y, x, None, metric, rtol=1e-5, atol=least[0])
            same("patch_similarity", y, y.flip(1), None, metric, rtol=1e-5, atol=least[1])
        same("layer_norm_gather", x, index, scale, scale, y, rtol=2e-3, atol=1e-7)
        slot = torch.full((3, 21), -1, dtype=torch.int32)
        same("merge_tokens", x[:, :0], y, slot, None, y.flip(0))
        # Each channel of another size, the smallest last: none may count as still.
        sizes = torch.logspace(-7, -4, channels).flip(0)
        spread = (torch.randn(3, 21, channels, generator=g) * sizes).to(half)
        same("quiet_channels", spread, max(1, channels // 2))
        for strategy in ("dual_anchor", "gaussian"):
            for anchor in (None, y[:, 3]):
                for picked in (None, torch.arange(channels - 1, -1, -2)):
                    past = anchor if picked is None or anchor is None else anchor[:, picked]
                    within = dict(rtol=2e-5, atol=2e-5)
                    same("anchor_scores", y, past, strategy, 0.5, picked, **within)
    """
)


@pytest.mark.skipif(not stc_kernels.build_info()["extension"], reason="nothing was compiled")
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_instruction_set(isa, seed):
    done = subprocess.run(
        [sys.executable, "-c", CHECK, isa, str(seed)],
        env={**os.environ, "STC_KERNELS_ISA": isa, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(f"{isa} kernels are not built or this processor cannot run them")
    assert done.returncode == 0, done.stderr
