"""The ops as torch sees them: schemas, opcheck, compile and export."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import stc_kernels
from stc_kernels import _registry
from stc_kernels.testing import random_tokens

OPS = tuple(_registry.SCHEMAS)


def arguments(op: str, frames: int, dtype: torch.dtype = torch.float32) -> tuple:
    """Return arguments of every kind that the op takes."""
    tokens = random_tokens(frames, 10, 16, dtype)
    held = torch.arange(frames) % 2
    reference = random_tokens(2, 10, 16, dtype)
    index = torch.arange(4).expand(frames, 4).contiguous()
    slot = (torch.arange(10, dtype=torch.int32) - 6).clamp_min(-1).expand(frames, 10).contiguous()
    return {
        "patch_similarity": (tokens, reference, held, "l2"),
        "select_dynamic": (tokens, reference, 3, held),
        "gather_tokens": (tokens, index),
        "merge_tokens": (tokens[:, :4].contiguous(), reference, slot, held, tokens),
        "merge_tokens_norm": (
            tokens[:, :4].contiguous(),
            reference,
            slot,
            torch.randn(16),
            torch.randn(16),
            held,
            tokens,
        ),
        "layer_norm_gather": (tokens, index, torch.randn(16), torch.randn(16), tokens[:, :4]),
        "quiet_channels": (tokens, 5),
        "anchor_scores": (tokens, torch.randn(frames, 16), "gaussian"),
        "topk_gather": (tokens, torch.randn(frames, 10), 4, False),
        "prune_tokens": (tokens, 4, torch.randn(5), "gaussian", 0.5, torch.arange(5)),
    }[op]


@pytest.mark.parametrize("op", OPS)
def test_schema_is_the_one_in_python(op):
    schema = str(getattr(torch.ops.stc_kernels, op).default._schema)
    declared = torch._C.parse_schema(f"stc_kernels::{op}{_registry.SCHEMAS[op]}")
    assert schema == str(declared)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op, dtype):
    torch.library.opcheck(getattr(torch.ops.stc_kernels, op).default, arguments(op, 3, dtype))


@pytest.mark.parametrize("op", OPS)
def test_opcheck_with_defaults(op):
    few = {"patch_similarity": 2, "select_dynamic": 3, "merge_tokens": 3, "topk_gather": 3}
    few |= {
        "merge_tokens_norm": 4,
        "layer_norm_gather": 3,
        "gather_tokens": 2,
        "quiet_channels": 2,
        "anchor_scores": 1,
        "prune_tokens": 2,
    }
    args = arguments(op, 2)[: few[op]]
    torch.library.opcheck(getattr(torch.ops.stc_kernels, op).default, args)


@pytest.mark.parametrize("op", OPS)
def test_compile_without_a_break_for_any_frame_count(op):
    torch._dynamo.reset()
    compilations = []

    def backend(module, inputs):
        compilations.append(module)
        return module.forward

    function = getattr(stc_kernels, op)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    # No frame count that equals another size: torch would take the two for one.
    for frames in (7, 9, 12):
        args = arguments(op, frames)
        torch.testing.assert_close(compiled(*args), function(*args))
    assert len(compilations) == 1


@pytest.mark.parametrize("op", OPS)
def test_export_with_dynamic_frames(op):
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            given = iter(tensors)
            filled = [next(given) if isinstance(a, torch.Tensor) else a for a in example]
            return getattr(torch.ops.stc_kernels, op)(*filled)

    example = arguments(op, 4)
    frames = torch.export.Dim("frames", min=2, max=64)

    def tensors(args):
        return tuple(a for a in args if isinstance(a, torch.Tensor))

    dynamic = tuple({0: frames} if t.shape[0] == 4 else None for t in tensors(example))
    exported = torch.export.export(Module(), tensors(example), dynamic_shapes=(dynamic,))
    other = arguments(op, 9)
    expected = getattr(stc_kernels, op)(*other)
    torch.testing.assert_close(exported.module()(*tensors(other)), expected)


class Masked(torch.nn.Module):
    """An op on the frames that a mask chooses, of all arguments that have the mask's length."""

    def __init__(self, op: str, example: tuple) -> None:
        super().__init__()
        self.op, self.example = op, example

    def forward(self, mask, *tensors):
        frames, given = mask.nonzero().squeeze(1), iter(tensors)
        filled = [next(given) if isinstance(a, torch.Tensor) else a for a in self.example]
        chosen = [
            a[frames] if isinstance(a, torch.Tensor) and len(b) == len(mask) else a
            for a, b in zip(filled, self.example, strict=True)
        ]
        return getattr(stc_kernels, self.op)(*chosen)


def paired(op: str, frames: int) -> tuple:
    """Return arguments with a reference for each frame, and no index that says so."""
    current, reference = (random_tokens(frames, 10, 16) for _ in "ab")
    slot = arguments("merge_tokens", frames)[2]
    few = current[:, :4].contiguous()
    return {
        "patch_similarity": (current, reference),
        "select_dynamic": (current, reference, 3),
        "merge_tokens": (few, reference, slot),
        "merge_tokens_norm": (few, reference, slot, torch.randn(16)),
    }[op]


PAIRED = ("patch_similarity", "select_dynamic", "merge_tokens", "merge_tokens_norm")


@pytest.mark.parametrize(
    ("op", "build"), [(op, arguments) for op in OPS] + [(op, paired) for op in PAIRED]
)
@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_frames_chosen_by_a_mask(op, build):
    torch._dynamo.reset()
    example = build(op, 7)  # as no other size is
    tensors = [a for a in example if isinstance(a, torch.Tensor)]
    plain = Masked(op, example)
    exported = torch.export.export(plain, (torch.tensor([1, 0, 1, 1, 0, 0, 1]).bool(), *tensors))
    compiled = torch.compile(plain, fullgraph=True, backend="aot_eager")
    # Some, others, one, all and none.
    for chosen in ("0101101", "1110000", "0000100", "1111111", "0000000"):
        mask = torch.tensor([c == "1" for c in chosen])
        expected = plain(mask, *tensors)
        torch.testing.assert_close(exported.module()(mask, *tensors), expected)
        torch.testing.assert_close(compiled(mask, *tensors), expected)


def test_two_masks_that_choose_unequal_numbers():
    class Module(torch.nn.Module):
        def forward(self, x, a, b):
            return stc_kernels.patch_similarity(x[a], x[b])

    x = random_tokens(4, 6, 8)
    a, b = torch.tensor([1, 0, 1, 0]).bool(), torch.tensor([0, 1, 1, 0]).bool()
    program = torch.export.export(Module(), (x, a, b)).module()
    torch.testing.assert_close(program(x, a, b), stc_kernels.patch_similarity(x[a], x[b]))
    with pytest.raises(RuntimeError):
        program(x, a, torch.tensor([1, 1, 1, 0]).bool())


def counted(op: str, k: int) -> tuple:
    """Return arguments of an op with k tokens or channels."""
    tokens = random_tokens(3, 40, 30)
    return {
        "select_dynamic": (tokens, random_tokens(3, 40, 30), k),
        "quiet_channels": (tokens, k),
        "topk_gather": (tokens, torch.randn(3, 40), k),
        "prune_tokens": (tokens, k, torch.randn(30)),
    }[op]


COUNTED = ("select_dynamic", "quiet_channels", "topk_gather", "prune_tokens")


@pytest.mark.parametrize("op", COUNTED)
def test_a_count_that_varies_needs_two_graphs(op):
    torch._dynamo.reset()
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    # As for aten.topk: one for the first count, one for all others.
    function = getattr(stc_kernels, op)
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for k in (5, *range(2, 24)):
        args = counted(op, k)
        torch.testing.assert_close(compiled(*args), function(*args))
    assert len(graphs) == 2
    with pytest.raises(RuntimeError, match=rf"{op}: k(eep)? must be in 1\.\.\d0"):
        compiled(*counted(op, 99))


@pytest.mark.parametrize("op", COUNTED)
def test_a_count_that_the_data_decide(op):
    class Module(torch.nn.Module):
        def forward(self, count, *tensors):
            given = iter(tensors)
            filled = [next(given) if isinstance(a, torch.Tensor) else count.item() for a in example]
            return getattr(stc_kernels, op)(*filled)

    example = counted(op, 4)
    tensors = [a for a in example if isinstance(a, torch.Tensor)]
    program = torch.export.export(Module(), (torch.tensor(4), *tensors)).module()
    for count in (1, 7, 30):
        expected = getattr(stc_kernels, op)(
            *(a if isinstance(a, torch.Tensor) else count for a in example)
        )
        torch.testing.assert_close(program(torch.tensor(count), *tensors), expected)
    for count in (0, 41):
        with pytest.raises(RuntimeError):
            program(torch.tensor(count), *tensors)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_packaged_for_any_frame_count(dtype, tmp_path):
    class AllOps(torch.nn.Module):
        def forward(self, given):
            return {
                op: getattr(torch.ops.stc_kernels, op)(
                    *(next(tensors) if isinstance(a, torch.Tensor) else a for a in examples[op])
                )
                for op, tensors in ((op, iter(given[op])) for op in OPS)
            }

    def tensors(frames):
        made = {op: arguments(op, frames, dtype) for op in OPS}
        return made, {op: [a for a in made[op] if isinstance(a, torch.Tensor)] for op in OPS}

    examples, given = tensors(4)
    frames = torch.export.Dim("frames", min=2, max=64)
    dynamic = {op: [{0: frames} if t.shape[0] == 4 else None for t in given[op]] for op in OPS}
    exported = torch.export.export(AllOps(), (given,), dynamic_shapes=(dynamic,))
    path = torch._inductor.aoti_compile_and_package(exported, package_path=f"{tmp_path}/ops.pt2")
    package = torch._inductor.aoti_load_package(path)
    for count in (4, 9, 13):
        other, given = tensors(count)
        actual = package(given)
        for op in OPS:
            expected = getattr(stc_kernels, op)(*other[op])
            torch.testing.assert_close(actual[op], expected, rtol=0, atol=0)


# A process for which nothing was compiled, where inductor checks what the definitions return.
WITHOUT_COMPILED_CODE = textwrap.dedent(
    """
    import sys, types
    sys.modules["stc_kernels._build_info"] = types.SimpleNamespace(
        EXTENSION=False, TORCH_VERSION="", COMPILER="", ISAS=()
    )
    import torch, stc_kernels
    from ops.test_results import calls

    assert stc_kernels.implementation("merge_tokens") == "naive (PyTorch)"
    g = torch.Generator().manual_seed(int(sys.argv[1]))
    # Those whose definitions once gave other strides.
    some = ("merge_tokens", "merge_tokens_norm", "topk_gather", "layer_norm_gather", "prune_tokens")
    made = [c for c in calls((3, 10, 16), ("transposed", "reversed_frames"), g) if c[0] in some]

    def run():
        return [getattr(torch.ops.stc_kernels, op)(*args) for op, args in made]

    actual = torch.compile(run, fullgraph=True)()
    torch.testing.assert_close(actual, run())
    """
)


@pytest.mark.slow
def test_compiled_without_compiled_code(seed):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILED_CODE, str(seed)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_bad_shapes_are_found_while_tracing():
    with torch._subclasses.FakeTensorMode():
        tokens = torch.empty(2, 6, 4)
        with pytest.raises(RuntimeError, match=r"k must be in 1\.\.6, but is 9"):
            torch.ops.stc_kernels.prune_tokens(tokens, 9)


FINDER = """
import sys
class Finder:
    def {method}(self, name, path=None{more}): {body}
sys.meta_path.insert(0, Finder())
import stc_kernels
"""
FIRST = {
    "torch": "import torch, stc_kernels",
    "stc_kernels": "import stc_kernels, torch",
    "reloaded": "import importlib, stc_kernels; importlib.reload(stc_kernels); import torch",
    "imported anew": "import sys, stc_kernels; del sys.modules['stc_kernels']; import stc_kernels",
    "a finder of Python 2": FINDER.format(method="find_module", more="", body="return None"),
    "a finder that delegates": FINDER.format(
        method="find_spec",
        more=", target=None",
        body="return next(filter(None, (f.find_spec(name, path, target)"
        " for f in sys.meta_path if f is not self)), None)",
    ),
}


@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)
def test_registered_whatever_comes_first(first):
    code = (
        f"{first}\nimport torch\nx = torch.ones(1, 3, 2)\n"
        "print(torch.ops.stc_kernels.prune_tokens(x, 2)[1], stc_kernels.prune_tokens(x, 1)[1])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == "tensor([[0, 1]]) tensor([[0]])"


def test_importing_watches_no_other_import_and_starts_no_gpu():
    code = (
        "import sys; before = list(sys.meta_path); import stc_kernels, torch\n"
        "assert not [f for f in sys.meta_path if 'stc_kernels' in type(f).__module__]\n"
        "assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_implementation():
    assert stc_kernels.implementation("prune_tokens").startswith(("C++ (", "naive"))
    on_gpu = "Triton" if importlib.util.find_spec("triton") else "naive (PyTorch)"
    assert stc_kernels.implementation("prune_tokens", "cuda") == on_gpu
    with pytest.raises(ValueError, match="op must be one of"):
        stc_kernels.implementation("nothing")
    with pytest.raises(ValueError, match="device must be cpu or cuda, but is 'mps'"):
        stc_kernels.implementation("prune_tokens", "mps")
    with pytest.raises(AttributeError, match="nothing"):
        stc_kernels.nothing  # noqa: B018
