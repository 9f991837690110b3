"""The benchmarks' inputs, baselines and checks: right at small sizes, and wrong when wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import eager
from benchmarks.cases import DTYPES, OPS, Case, all_cases, make_check, make_inputs
from benchmarks.shapes import FRAMES, LLM_WIDTHS, TOWERS

SMALL = Case("", "small", frames=3, tokens=37, channels=48, k=9, dtype="float32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_every_side_is_right(op, dtype, seed):
    case = replace(SMALL, op=op, dtype=dtype)
    inputs = make_inputs(case, seed=seed)
    check = make_check(case, inputs)
    check(getattr(torch.ops.stc_kernels, op)(*inputs.ours))
    rounded = make_check(case, inputs, exact=False)
    for name, way in eager.ways(op, dtype).items():
        (check if name.startswith("float32") else rounded)(way(*inputs.eager))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_a_wrong_result_is_refused(op, dtype, seed):
    case = replace(SMALL, op=op, dtype=dtype)
    inputs = make_inputs(case, seed=seed)
    result = getattr(torch.ops.stc_kernels, op)(*inputs.ours)
    wrong = [tensor.flip(0) for tensor in (result if isinstance(result, tuple) else [result])]
    # Channels come sorted, so that to flip them is to be wrong; frames are as unlike as can be.
    for exact in (True, False):
        check = make_check(case, inputs, exact=exact)
        with pytest.raises(AssertionError):
            check(tuple(wrong) if isinstance(result, tuple) else wrong[0])


@pytest.mark.parametrize("op", ["select_dynamic", "topk_gather", "prune_tokens"])
def test_the_wrong_choice_is_refused(op, seed):
    case = replace(SMALL, op=op)
    inputs = make_inputs(case, seed=seed)
    worst = {"select_dynamic": (0, 1), "topk_gather": (1, 0), "prune_tokens": (1, 0)}[op]
    index = torch.arange(case.k).repeat(case.frames, 1)
    result: list[torch.Tensor] = [index, index]
    if op == "select_dynamic":
        slot = torch.full((case.frames, case.tokens), -1, dtype=torch.int32)
        slot[:, : case.k] = torch.arange(case.k, dtype=torch.int32)
        result[worst[1]] = slot
    else:
        result[worst[1]] = eager.gather_tokens(inputs.ours[0], index)
    with pytest.raises(AssertionError, match="score best"):
        make_check(case, inputs)(tuple(result))


def test_bytes_are_the_fewest():
    case = replace(SMALL, frames=2, tokens=10, channels=4, k=3)
    token, every, chosen = 4 * 4, 2 * 10, 2 * 3
    expected = {
        "patch_similarity": 2 * every * token + 4 * every,
        "select_dynamic": 2 * every * token + 8 * chosen + 4 * every,
        "gather_tokens": 2 * chosen * token + 8 * chosen,
        # Updated rows and two terms of each reused one are read, every row is written.
        "merge_tokens": (6 + 2 * 14 + 20) * token + 4 * every,
        "merge_tokens_norm": (6 + 2 * 14 + 20 + 20 + 2) * token + 4 * every,
        "layer_norm_gather": (2 * 6 + 2 * 6 + 2) * token + 8 * chosen,
        "quiet_channels": every * token + 8 * 2,
        "anchor_scores": every * token + 2 * 4 * 4 + 4 * every,
        "topk_gather": 4 * every + 2 * chosen * token + 8 * chosen,
        "prune_tokens": (every + chosen) * token + 2 * 4 * 4 + 8 * chosen,
    }
    assert {op: make_inputs(replace(case, op=op)).bytes for op in OPS} == expected


def test_cases_are_every_op_at_every_real_size():
    cases = all_cases()
    cacher, pruner = 6 * len(TOWERS), 4 * len(LLM_WIDTHS)
    assert len(cases) == len(set(map(str, cases))) == len(FRAMES) * 2 * (cacher + pruner)
    assert {case.op for case in cases if case.default} == set(OPS)
    for op in ("select_dynamic", "prune_tokens", "merge_tokens", "gather_tokens", "topk_gather"):
        default = [case for case in cases if case.op == op and case.default]
        assert {(case.frames, case.dtype) for case in default} == {
            (frames, dtype) for frames in FRAMES for dtype in DTYPES
        }
