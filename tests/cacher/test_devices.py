"""Several GPUs, streams and threads, on GPUs that are not there (`fake_gpu.py`)."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from cacher.fake_gpu import NOT_WHILE_CAPTURING, CUDAGraph, Event, FakeGpus, Stream, on_gpu

from stc_stream import CacherConfig, attach_cacher
from stc_stream.cacher import graphs
from stc_stream.cacher.graphs import CudaBackend

LIMIT = 20
"""Seconds until a thread counts as stuck."""


@pytest.fixture
def gpus(monkeypatch):
    with FakeGpus(monkeypatch) as fake:
        yield fake


@pytest.fixture
def case(make_tower, make_clip, gpus):
    """Return a maker of a tower and a clip on a device."""

    def make(frames, device="cuda:1"):
        tower = make_tower(vision_use_head=False)
        return on_gpu(tower, gpus, device), gpus.put(make_clip(frames), device)

    return make


def run(tower, frames):
    with torch.no_grad():
        return tower(frames).last_hidden_state


def test_a_tower_runs_where_it_is_whatever_device_is_current(make_tower, make_clip, gpus):
    tower, clip = make_tower(vision_use_head=False), make_clip(6)
    config = {"refresh_interval": 2, "self_check": False}
    with attach_cacher(tower, CacherConfig.paper(**config)):
        expected = [run(tower, frame[None]) for frame in clip]
    on_gpu(tower, gpus, "cuda:1")
    clip = gpus.put(clip, "cuda:1")
    with attach_cacher(tower, CacherConfig.paper(cuda_graph=True, **config)) as cacher:
        for frame, other in zip(range(6), expected, strict=True):
            ours = run(tower, clip[frame : frame + 1])
            torch.testing.assert_close(ours.cpu(), other, rtol=1e-5, atol=1e-5)
        assert cacher._graphs.replays == 4
    assert gpus.current_device() == 0
    assert {what for what, _ in gpus.calls} == {"record", "wait", "capture", "replay"}
    assert {stream.device.index for _, stream in gpus.calls} == {1}
    assert gpus.faults == []


def test_a_capture_has_a_stream_of_its_own_and_gives_the_threads_back(gpus):
    outer = Stream("cuda:1")
    x = gpus.put(torch.ones(3), "cuda:1")
    with gpus.stream(outer), gpus.device("cuda:0"):
        replay, (doubled,) = CudaBackend().capture(lambda inputs: [inputs[0] * 2], [x])
        replay()
        assert gpus.current_stream("cuda:1") is outer and gpus.current_device() == 0
        assert doubled.tolist() == [2, 2, 2]
    captured = [stream for what, stream in gpus.calls if what == "capture"]
    assert captured[0] not in (outer, gpus.default_stream("cuda:1"), gpus.default_stream("cuda:0"))
    assert gpus.faults == []


def test_a_capture_that_fails_gives_the_threads_stream_back(gpus):
    outer = Stream("cuda:1")
    x = gpus.put(torch.ones(3), "cuda:1")

    def reads_values(inputs):
        return [inputs[0] * 2 if inputs[0].sum().item() else inputs[0]]

    with gpus.stream(outer):
        backend = CudaBackend()
        # Its own error, not that of the capture's end, which has less to say.
        with pytest.raises(RuntimeError, match=NOT_WHILE_CAPTURING):
            backend.capture(reads_values, [x])
        assert gpus.current_stream() is outer
        assert gpus.capturing is None
        backend.capture(lambda inputs: [inputs[0] * 2], [x])


def test_captures_in_threads_come_one_after_the_other(gpus, monkeypatch):
    asked, errors = threading.Event(), []
    lock = graphs._CAPTURING

    class Watched:
        def __enter__(self):
            if threading.current_thread() is second:
                asked.set()
            lock.acquire()

        def __exit__(self, *error):
            lock.release()

    def capture(work, device):
        try:
            with gpus:
                CudaBackend().capture(work, [gpus.put(torch.ones(3), device)])
        except Exception as error:
            errors.append(error)

    def first_work(inputs):
        if gpus.is_current_stream_capturing():
            second.start()
            assert asked.wait(LIMIT), "the second capture did not ask for its turn"
        return [inputs[0] * 2]

    second = threading.Thread(target=capture, args=(lambda inputs: [inputs[0] + 1], "cuda:0"))
    monkeypatch.setattr(graphs, "_CAPTURING", Watched())
    first = threading.Thread(target=capture, args=(first_work, "cuda:1"))
    first.start()
    for thread in (first, second):
        thread.join(LIMIT)
    assert errors == []
    assert [what for what, _ in gpus.calls].count("capture") == 2


def test_other_threads_wait_for_their_own_work_during_a_capture(gpus):
    seen, errors = [], []

    def other():
        try:
            with gpus:
                y = gpus.put(torch.arange(3.0), "cuda:1") + 1
                seen.append(y.tolist())
                gpus.current_stream("cuda:1").synchronize()
        except Exception as error:
            errors.append(error)

    def work(inputs):
        if gpus.is_current_stream_capturing():
            thread = threading.Thread(target=other)
            thread.start()
            thread.join(LIMIT)
        return [inputs[0] * 2]

    CudaBackend().capture(work, [gpus.put(torch.ones(3), "cuda:1")])
    assert errors == [] and seen == [[1, 2, 3]]


@pytest.mark.parametrize("settings", [{}, {"refresh_on_change": 0.5}, {"reference_keys": "int8"}])
@pytest.mark.parametrize("graph", [False, True])
def test_memory_outlives_its_use_on_several_streams(case, gpus, graph, settings):
    """The pool grows, shrinks and is reset, graphs are let go: while other streams still run."""
    tower, clip = case(3)
    config = {"refresh_interval": 100, "self_check": False, "refresh_on_change": None}
    config = CacherConfig(**config | settings, cuda_graph=graph)
    # So many that what one has made is let go before it has waited for the others.
    queues = [Stream("cuda:1") for _ in range(7)]
    turn = iter(queues * 20)

    def forward(names):
        # Each stream has its own frames, and nothing but the Cacher orders them.
        with gpus.stream(next(turn)), cacher.streams(list(names)):
            run(tower, clip[: len(names)])

    with attach_cacher(tower, config) as cacher:
        if graph:
            cacher._graphs._most = 1
        for names in ("a", "a", "a", "a", "a", "ab", "ab", "ab", "abc", "abc", "b"):
            forward(names)
        cacher.reset("b")
        forward("b")
        if graph:
            assert cacher._graphs.replays > 0
        cacher._scheduler._table._max_bytes = (
            cacher._scheduler._table.pool(next(iter(cacher._scheduler._table._pools))).entry_bytes
            * 2
        )
        forward("ad")
        forward("ad")
        for _ in range(4):
            forward("e")
        cacher.reset()
        forward("f")
    gc.collect()
    assert gpus.faults == []


# What the fake GPUs hold others to.


def test_a_default_stream_is_not_captured(gpus):
    with pytest.raises(RuntimeError, match="non-default stream"):
        CUDAGraph().capture_begin()


def test_a_device_is_not_waited_for_while_it_captures(gpus):
    with gpus.stream(Stream("cuda:1")):
        graph = CUDAGraph()
        graph.capture_begin(capture_error_mode="relaxed")
        with pytest.raises(RuntimeError, match=NOT_WHILE_CAPTURING):
            gpus.synchronize()
        with pytest.raises(RuntimeError, match="another capture"):
            CUDAGraph().capture_begin()
        with pytest.raises(RuntimeError, match="previous error"):
            graph.capture_end()


def test_an_event_stays_on_its_device(gpus):
    event = Event()
    event.record(Stream("cuda:0"))
    event.wait(Stream("cuda:1"))
    with pytest.raises(RuntimeError, match="does not match"):
        event.record(Stream("cuda:1"))


@pytest.mark.parametrize("ordered", [False, True])
def test_streams_that_are_not_ordered_are_noticed(gpus, ordered):
    one, other = Stream("cuda:0"), Stream("cuda:0")
    with gpus.stream(one):
        x = gpus.put(torch.ones(3), "cuda:0") + 1
    if ordered:
        other.wait_stream(one)
    with gpus.stream(other):
        x.add_(1)
    assert bool(gpus.faults) != ordered


@pytest.mark.parametrize("way", ["told", "waited", "neither"])
def test_memory_that_goes_too_early_is_noticed(gpus, way):
    one, other = Stream("cuda:0"), Stream("cuda:0")
    with gpus.stream(one):
        x = gpus.put(torch.ones(3), "cuda:0") + 1
    other.wait_stream(one)
    with gpus.stream(other):
        x + 1
    if way == "told":
        x.record_stream(other)
    if way == "waited":
        one.wait_stream(other)
    del x
    gc.collect()
    assert bool(gpus.faults) == (way == "neither")
