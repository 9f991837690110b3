"""`stc_kernels.interop.onnx`: exported, run in onnxruntime, and held against the ops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ops.cases import assert_chosen, strategies
from ops.test_registration import OPS, arguments

import stc_kernels
from stc_kernels.testing import integer_tokens, random_tokens, score_tolerance

pytest.importorskip("onnxscript", reason="onnxscript is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from stc_kernels.interop.onnx import translation_table  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Op(torch.nn.Module):
    """One op as a model of its tensor arguments; the others are part of it."""

    def __init__(self, op: str, args: tuple) -> None:
        super().__init__()
        self.op = getattr(torch.ops.stc_kernels, op)
        self.args = [None if isinstance(value, torch.Tensor) else value for value in args]
        self.places = [i for i, value in enumerate(args) if isinstance(value, torch.Tensor)]

    def forward(self, *tensors):
        args = list(self.args)
        for place, tensor in zip(self.places, tensors, strict=True):
            args[place] = tensor
        return self.op(*args)


class PrunedProjector(torch.nn.Module):
    """What follows a vision tower: a projection, and the tokens worth keeping."""

    def __init__(self, strategy: str) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(24, 40)
        self.strategy = strategy

    def forward(self, features, past):
        tokens = self.linear(features)
        scores = torch.ops.stc_kernels.anchor_scores(tokens, past, self.strategy)
        kept, index = torch.ops.stc_kernels.topk_gather(tokens, scores, 7)
        return tokens, scores, kept, index


def export(model, args, dynamic):
    """Return a function that runs the exported model on tensors, in onnxruntime."""
    with torch.no_grad():
        program = torch.onnx.export(
            model.eval(),
            args,
            dynamo=True,
            custom_translation_table=translation_table(),
            dynamic_shapes=dynamic,
            verbose=False,
        )
    assert {node.domain for node in program.model.graph} <= {"", "ai.onnx"}
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [entry.name for entry in session.get_inputs()]

    def run(*tensors):
        arrays = [tensor.contiguous().numpy() for tensor in tensors]
        outputs = session.run(None, dict(zip(names, arrays, strict=True)))
        return [torch.from_numpy(np.asarray(output)) for output in outputs]

    return run


def tensors(args):
    return tuple(value for value in args if isinstance(value, torch.Tensor))


def assert_equal(found, expected, channels=16):
    expected = expected if isinstance(expected, tuple) else (expected,)
    for tensor, ours in zip(found, expected, strict=True):
        assert tensor.dtype == ours.dtype
        if ours.dtype.is_floating_point:
            torch.testing.assert_close(tensor, ours, equal_nan=True, **score_tolerance(channels))
        else:
            assert torch.equal(tensor, ours)


@pytest.mark.parametrize("op", OPS)
def test_every_op_with_every_argument(op, seed):
    torch.manual_seed(seed)
    args = arguments(op, 3)
    run = export(Op(op, args), tensors(args), None)
    for _ in range(3):
        args = arguments(op, 3)
        assert_equal(run(*tensors(args)), getattr(stc_kernels, op)(*args))


@pytest.mark.parametrize("metric", ["cosine", "dot", "l1", "l2"])
def test_select_dynamic_of_equal_scores(metric, seed):
    generator = torch.Generator().manual_seed(seed)
    # Every sum is exact, so that equal scores are equal in both; one reference for all frames.
    current, reference = (
        integer_tokens(frames, 30, 4, generator=generator, largest=1) for frames in (3, 1)
    )
    args = (current, reference, 11, None, metric)
    similarity = stc_kernels.patch_similarity(current, reference, None, metric)
    index, slot = export(Op("select_dynamic", args), tensors(args), None)(*tensors(args))
    if metric in ("dot", "l1"):
        assert_equal((index, slot), stc_kernels.select_dynamic(*args))
    assert_chosen(index, similarity, 11, largest=False, tolerance=1e-6)


@pytest.mark.parametrize("largest", [True, False])
def test_topk_gather_of_scores_that_are_not_finite(largest):
    scores = torch.tensor([[1.0, torch.nan, 3.0, torch.inf, -torch.inf, 3.0, 3.0, 0.0]])
    args = (torch.arange(16.0).view(1, 8, 2), scores, 3, largest)
    run = export(Op("topk_gather", args), tensors(args), None)
    assert_equal(run(*tensors(args)), stc_kernels.topk_gather(*args))


@strategies
@pytest.mark.parametrize("history", ["one", "per_frame", "none"])
def test_prune_tokens_with_garbage_in(strategy, history, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = random_tokens(2, 12, 10, generator=generator)
    tokens[0, 3, 2], tokens[1, 7] = torch.nan, torch.inf
    shape = {"one": (10,), "per_frame": (2, 10), "none": None}[history]
    past = None if shape is None else torch.randn(shape, generator=generator)
    args = (tokens, past, strategy, 0.3)
    (scores,) = export(Op("anchor_scores", args), tensors(args), None)(*tensors(args))
    assert_equal([scores], stc_kernels.anchor_scores(*args), 10)
    kept, index = export(Op("prune_tokens", (tokens, 4, *args[1:])), tensors(args), None)(
        *tensors(args)
    )
    assert torch.equal(index, stc_kernels.topk_gather(tokens, scores, 4)[1])
    assert torch.equal(kept, stc_kernels.gather_tokens(tokens, index))


def test_half_precision(seed):
    torch.manual_seed(seed)
    args = (random_tokens(2, 9, 6, torch.float16), torch.randn(2, 9), 4)
    run = export(Op("topk_gather", args), tensors(args), None)
    assert_equal(run(*tensors(args)), stc_kernels.topk_gather(*args))


@strategies
def test_a_pruned_projector_for_any_number_of_frames(strategy, seed):
    torch.manual_seed(seed)
    model = PrunedProjector(strategy)
    dynamic = {"features": {0: torch.export.Dim("frames")}, "past": None}
    run = export(model, (torch.randn(3, 50, 24), torch.randn(40)), dynamic)
    for frames in (1, 3, 8):
        features, past = torch.randn(frames, 50, 24), torch.randn(40)
        tokens, scores, kept, index = run(features, past)
        # onnxruntime's own projection, so that what follows has the same input.
        ours = stc_kernels.anchor_scores(tokens, past, strategy)
        assert_equal([scores], ours, 40)
        assert_chosen(index, ours, 7, largest=True, tolerance=1e-5)
        assert_equal([kept, index], stc_kernels.topk_gather(tokens, scores, 7))
