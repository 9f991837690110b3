"""`warmup` where there is no GPU: it checks, and has nothing to do."""

from __future__ import annotations

import pytest
import torch

import stc_kernels
from stc_kernels import _blocks, tuning
from stc_kernels._registry import SCHEMAS
from stc_kernels._warmup import calls


def test_on_a_cpu_there_is_nothing_to_do():
    stc_kernels.warmup(729, 1152, 182, device="cpu")
    with pytest.raises(ValueError, match="op must be one of"):
        stc_kernels.warmup(729, 1152, 182, device="cpu", ops=("select",))
    with pytest.raises(ValueError, match=r"k must be in 1\.\.9, but is 10"):
        stc_kernels.warmup(9, 4, 10, device="cpu")


@pytest.mark.parametrize("op", SCHEMAS)
def test_calls_are_good_ones(op):
    made = list(calls(op, 2, 9, 16, 3, torch.bfloat16, "cpu"))
    for arguments in made:
        getattr(torch.ops.stc_kernels, op)(*arguments)
    assert made


@pytest.mark.parametrize("op", SCHEMAS)
def test_block_sizes_are_powers_of_two(op):
    for tokens, channels in ((1, 1), (729, 1152), (196, 3584), (4096, 8192), (13, 100)):
        tried = tuning.candidates(op, tokens, channels, 2)
        assert tried[0] == _blocks.rule_of_thumb(op, tokens, channels, 2)
        for sizes in tried:
            assert set(sizes) == {"BLOCK_T", "BLOCK_C", "num_warps"}
            assert all(n >= 1 and n & (n - 1) == 0 for n in sizes.values())
        if op in ("merge_tokens_norm", "layer_norm_gather"):
            assert all(sizes["BLOCK_C"] >= channels for sizes in tried)


def test_measured_sizes_come_before_the_rule(tmp_path, monkeypatch):
    monkeypatch.setattr(_blocks, "_CONFIGS", tmp_path)
    sizes = {"BLOCK_T": 2, "BLOCK_C": 128, "num_warps": 2}
    entry = '{"op": "select_dynamic", "tokens": 9, "channels": 16, "itemsize": 2, "sizes": %s}'
    text = '{"entries": [' + entry % str(sizes).replace("'", '"') + "]}"
    (tmp_path / "some-gpu-9.json").write_text(text)
    assert _blocks.measured("Some GPU-9") == {("select_dynamic", 9, 16, 2): sizes}
    assert _blocks.measured("Another") == {}
