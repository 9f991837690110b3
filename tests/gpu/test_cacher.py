"""A tower with a Cacher on a GPU: as on the CPU, from graphs, on several queues."""

from __future__ import annotations

import threading

import pytest
import torch

from stc_stream import CacherConfig, attach_cacher

transformers = pytest.importorskip("transformers", reason="transformers is not installed here")
pytestmark = pytest.mark.gpu
STREAMS = ["door", "yard", "door", "yard"] * 8


@pytest.fixture(autouse=True)
def _exact_products():
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


@pytest.fixture
def tower(seed):
    torch.manual_seed(seed)
    config = transformers.CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
    )
    return transformers.CLIPVisionModel(config).eval()


@pytest.fixture
def clip(seed):
    generator = torch.Generator().manual_seed(seed)
    scene = torch.randn(3, 64, 64, generator=generator)
    return scene + 0.1 * torch.randn(32, 3, 64, 64, generator=generator)


def run(tower, config, clip, size, streams=STREAMS):
    """Return the features of a clip fed in batches of one size, kept until the end."""
    outputs = []
    with torch.inference_mode(), attach_cacher(tower, config) as cacher:
        for rows in torch.arange(len(streams)).split(size):
            with cacher.streams([streams[row] for row in rows]):
                outputs.append(tower(clip[rows]).last_hidden_state)
        return torch.cat(outputs), cacher.stats, cacher


@pytest.mark.parametrize("size", [1, 4, 32])
@pytest.mark.parametrize(
    "settings",
    [{}, {"stagger": True}, {"reference_keys": "int8"}, {"threshold": 0.9}, {"max_streams": 1}],
)
def test_as_on_the_cpu(tower, clip, size, settings):
    config = CacherConfig.paper(refresh_interval=3, **settings)
    expected, stats, _ = run(tower, config, clip, size)
    ours, ours_stats, _ = run(tower.cuda(), config, clip.cuda(), size)
    assert (ours_stats.frames, ours_stats.refreshes) == (stats.frames, stats.refreshes)
    # A choice that depends on rounding may differ: few tokens do.
    close = torch.isclose(ours.cpu(), expected, rtol=1e-3, atol=1e-3).all(dim=-1)
    assert close.float().mean() > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 4, 6])
def test_graphs_give_what_eager_gives(tower, clip, size, dtype):
    tower, clip = tower.to("cuda", dtype), clip.to("cuda", dtype)
    expected, stats, _ = run(tower, CacherConfig.paper(refresh_interval=3), clip, size)
    graphs = CacherConfig.paper(refresh_interval=3, cuda_graph=True)
    ours, ours_stats, cacher = run(tower, graphs, clip, size)
    assert cacher._graphs.replays > 0
    assert (ours_stats.frames, ours_stats.refreshes) == (stats.frames, stats.refreshes)
    assert torch.equal(ours, expected)


def test_a_selective_frame_waits_for_nothing(tower, clip):
    tower, clip = tower.cuda(), clip.cuda()
    with torch.inference_mode(), attach_cacher(tower, CacherConfig.paper(refresh_interval=100)):
        tower(clip[:1])
        tower(clip[1:2])
        torch.cuda.set_sync_debug_mode("error")
        try:
            tower(clip[2:3])
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_frames_of_the_plain_schedule_wait_for_nothing(tower, clip):
    tower, clip = tower.cuda(), clip.cuda()
    config = CacherConfig.paper(refresh_interval=2, self_check=False)
    with torch.inference_mode(), attach_cacher(tower, config) as cacher:
        for frame in clip[:4]:
            tower(frame[None])
        torch.cuda.set_sync_debug_mode("error")
        try:
            for frame in clip[4:9]:
                tower(frame[None])
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert cacher.stats.refreshes == 5


def test_a_broken_frame_is_known_once_its_batch_has_run(tower, clip):
    tower, clip = tower.cuda(), clip.cuda()
    clip[0, 0, 3, 3] = torch.nan
    config = CacherConfig.paper(refresh_interval=100)
    with torch.inference_mode(), attach_cacher(tower, config) as cacher:
        tower(clip[:1])
        torch.cuda.synchronize()
        assert tower(clip[1:2]).last_hidden_state.isfinite().all()
        assert (cacher.stats.rejected, cacher.stats.refreshes) == (1, 2)


def test_moved_between_frames_it_starts_anew(tower, clip):
    with (
        torch.inference_mode(),
        attach_cacher(tower, CacherConfig.paper(refresh_interval=100)) as cacher,
    ):
        tower(clip[:2])
        tower.cuda()
        moved = tower(clip[2:3].cuda()).last_hidden_state
        with cacher.paused():
            dense = tower(clip[2:3].cuda()).last_hidden_state
        torch.testing.assert_close(moved, dense, rtol=1e-4, atol=1e-4)
        assert (cacher.stats.restarts, cacher.stats.refreshes) == (1, 2)


def test_threads_on_queues_of_their_own(tower, clip):
    tower, clip = tower.cuda(), clip.cuda()
    config = CacherConfig.paper(refresh_interval=4, cuda_graph=True)
    alone, _, _ = run(tower, CacherConfig.paper(refresh_interval=4), clip, 1, ["only"] * 32)
    outputs = {}
    with torch.no_grad(), attach_cacher(tower, config) as cacher:

        def feed(name):
            with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
                frames = []
                for frame in clip:
                    with cacher.streams([name]):
                        frames.append(tower(frame[None]).last_hidden_state)
                outputs[name] = torch.cat(frames)

        threads = [threading.Thread(target=feed, args=[name]) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        torch.cuda.synchronize()
    for features in outputs.values():
        torch.testing.assert_close(features, alone, rtol=1e-3, atol=1e-3)
