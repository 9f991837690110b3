"""The ops on a GPU: against their definitions, under the compiler, in graphs and on streams."""

from __future__ import annotations

import pytest
import torch
from ops.test_registration import OPS, arguments

import stc_kernels
from stc_kernels._warmup import calls
from stc_kernels.testing import DTYPES, integer_tokens, naive, random_tokens

pytestmark = pytest.mark.gpu
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
strategies = pytest.mark.parametrize("strategy", ["dual_anchor", "gaussian"])


def on_gpu(args):
    return tuple(a.cuda() if isinstance(a, torch.Tensor) else a for a in args)


def test_triton_is_what_runs():
    assert stc_kernels.implementation("select_dynamic", "cuda") == "Triton"


@dtypes
@pytest.mark.parametrize("op", OPS)
def test_as_the_definition(op, dtype):
    for frames in (0, 1, 5):
        args = on_gpu(arguments(op, frames, dtype))
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(
            getattr(stc_kernels, op)(*args), naive(op)(*args), rtol=2 * eps, atol=max(eps, 1e-5)
        )


@pytest.mark.parametrize("metric", ["cosine", "dot", "l1", "l2"])
@pytest.mark.parametrize("shape", [(16, 729, 1152), (1, 577, 1024), (2, 4096, 96), (200, 63, 40)])
def test_select_dynamic_is_exact_on_integers(shape, metric, generator):
    a, b = (
        integer_tokens(*shape, torch.bfloat16, generator=generator, largest=1).cuda()
        for _ in range(2)
    )
    k = shape[1] // 4
    # Many times, as the last block of a frame is another one each time.
    for _ in range(20):
        index, slot = stc_kernels.select_dynamic(a, b, k, None, metric)
        similarity = stc_kernels.patch_similarity(a, b, None, metric)
        expected = naive("topk_gather")(a, similarity, k, False)[1]
        assert torch.equal(index, expected)
        assert torch.equal((slot >= 0).sum(1), torch.full((shape[0],), k, device="cuda"))
        assert torch.equal(
            slot.gather(1, index), torch.arange(k, device="cuda").expand(shape[0], k)
        )


@strategies
@dtypes
@pytest.mark.parametrize("shape", [(1, 196, 3584), (64, 196, 3584), (2, 4096, 896), (3, 13, 8192)])
def test_prune_tokens(shape, dtype, strategy, generator):
    tokens = random_tokens(*shape, dtype, generator=generator).cuda()
    past = torch.randn(shape[2], generator=generator).cuda()
    k = max(1, shape[1] // 3)
    scores = stc_kernels.anchor_scores(tokens, past, strategy)
    torch.testing.assert_close(
        scores, naive("anchor_scores")(tokens, past, strategy), rtol=1e-4, atol=3e-5
    )
    expected = naive("topk_gather")(tokens, scores, k)
    for _ in range(10):
        kept, index = stc_kernels.prune_tokens(tokens, k, past, strategy)
        assert torch.equal(index, expected[1]) and torch.equal(kept, expected[0])


@strategies
def test_garbage_is_not_sent_on(strategy, generator):
    tokens = random_tokens(3, 196, 3584, torch.bfloat16, generator=generator).cuda()
    tokens[0, 3, 5], tokens[1, 7], tokens[2, 195, 3583] = torch.nan, torch.inf, 3e38
    index = stc_kernels.prune_tokens(tokens, 195, None, strategy)[1]
    missing = [(set(range(196)) - set(row)).pop() for row in index.tolist()]
    assert missing == [3, 7, 195]


@pytest.mark.parametrize("op", OPS)
def test_opcheck(op):
    args = on_gpu(arguments(op, 3, torch.bfloat16))
    torch.library.opcheck(getattr(torch.ops.stc_kernels, op).default, args)


@pytest.mark.parametrize("op", OPS)
def test_compiled_for_any_frame_count(op):
    torch._dynamo.reset()
    function = getattr(stc_kernels, op)
    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for frames in (7, 9, 12):
            args = on_gpu(arguments(op, frames))
            torch.testing.assert_close(compiled(*args), function(*args))


@pytest.mark.parametrize("op", OPS)
def test_packaged_for_any_frame_count(op, tmp_path):
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            given = iter(tensors)
            filled = [next(given) if isinstance(a, torch.Tensor) else a for a in example]
            return getattr(torch.ops.stc_kernels, op)(*filled)

    def tensors(args):
        return tuple(a for a in args if isinstance(a, torch.Tensor))

    example = on_gpu(arguments(op, 4))
    frames = torch.export.Dim("frames", min=2, max=64)
    dynamic = tuple({0: frames} if t.shape[0] == 4 else None for t in tensors(example))
    exported = torch.export.export(Module(), tensors(example), dynamic_shapes=(dynamic,))
    path = torch._inductor.aoti_compile_and_package(exported, package_path=f"{tmp_path}/op.pt2")
    other = on_gpu(arguments(op, 9))
    actual = torch._inductor.aoti_load_package(path)(*tensors(other))
    expected = getattr(stc_kernels, op)(*other)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("op", OPS)
def test_captured_in_a_graph(op):
    function = getattr(stc_kernels, op)
    held = on_gpu(arguments(op, 5))
    function(*held)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function(*held)
    for _ in range(3):
        other = on_gpu(arguments(op, 5))
        for mine, new in zip(held, other, strict=True):
            if isinstance(mine, torch.Tensor):
                mine.copy_(new)
        graph.replay()
        torch.testing.assert_close(result, function(*held))


def test_graphs_and_eager_calls_at_once(generator):
    # Kernels that count their blocks, side by side: nobody may count another's.
    a, b = (random_tokens(32, 729, 256, generator=generator).cuda() for _ in range(2))
    expected = stc_kernels.select_dynamic(a, b, 100)[0]
    graphs, results = [], []
    for _ in range(4):
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1]):
            results.append(stc_kernels.select_dynamic(a, b, 100)[0])
    streams = [torch.cuda.Stream() for _ in range(8)]
    torch.cuda.synchronize()
    for _ in range(50):
        for stream, graph in zip(streams, graphs, strict=False):
            with torch.cuda.stream(stream):
                graph.replay()
        for stream in streams[4:]:
            with torch.cuda.stream(stream):
                results.append(stc_kernels.select_dynamic(a, b, 100)[0])
    torch.cuda.synchronize()
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("op", OPS)
def test_no_call_waits_for_the_gpu(op):
    args = on_gpu(arguments(op, 5))
    function = getattr(stc_kernels, op)
    function(*args)
    torch.cuda.set_sync_debug_mode("error")
    try:
        function(*args)
    finally:
        torch.cuda.set_sync_debug_mode("default")


LAUNCHES = {"quiet_channels": 2, "prune_tokens": 2, "anchor_scores": 2}


@pytest.mark.parametrize("op", OPS)
def test_launches_a_call(op):
    for args in calls(op, 3, 196, 256, 60, torch.bfloat16, "cuda"):
        function = getattr(torch.ops.stc_kernels, op)
        function(*args)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            function(*args)
            torch.cuda.synchronize()
        kernels = [e.name for e in profile.events() if e.device_type.name == "CUDA"]
        assert len(kernels) <= LAUNCHES.get(op, 1), kernels


def test_past_two_to_the_31_elements():
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of GPU memory")
    tokens = torch.zeros(90, 4096, 6144, dtype=torch.bfloat16, device="cuda")
    tokens[-1, -1] = 1
    index = torch.full((90, 1), 4095, device="cuda")
    assert (stc_kernels.gather_tokens(tokens, index)[-1] == 1).all()
    assert stc_kernels.topk_gather(tokens, tokens[..., 0].float(), 1)[1][-1].item() == 4095


def test_warmup_leaves_nothing_to_compile():
    from triton.runtime import jit

    stc_kernels.warmup(37, 48, 9, dtype=torch.float16)
    compiled = []
    hook = jit.JITFunction._do_compile

    def watched(self, *args, **kwargs):
        compiled.append(self.__name__)
        return hook(self, *args, **kwargs)

    jit.JITFunction._do_compile = watched
    try:
        for op in OPS:
            for args in calls(op, 11, 37, 48, 9, torch.float16, "cuda"):
                getattr(torch.ops.stc_kernels, op)(*args)
    finally:
        jit.JITFunction._do_compile = hook
    assert not compiled
