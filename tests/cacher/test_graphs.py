"""Batches run from graphs, with a backend that repeats the work where a GPU would be needed."""

from __future__ import annotations

import warnings

import pytest
import torch
from cacher.conftest import Repeats

from stc_stream import CacherConfig, attach_cacher
from stc_stream.cacher.graphs import CudaBackend, GraphStore

GRAPHS = {"cuda_graph": True}


def attach(tower, config, backend, most=16):
    cacher = attach_cacher(tower, config)
    cacher._graphs = GraphStore(backend, most) if config.cuda_graph else None
    return cacher


def close(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [[1] * 48, [4] * 12, [6, 2, 4] * 4])
@pytest.mark.parametrize("settings", [{}, {"stagger": True}, {"reference_keys": "int8"}])
def test_graphs_give_what_eager_gives(clear_case, sizes, settings):
    streams = ["door", "yard", "door", "yard"] * 12
    config = CacherConfig.paper(refresh_interval=3, **settings)
    tower, clip, expected, stats = clear_case(config, streams)
    backend = Repeats()
    config = CacherConfig.paper(refresh_interval=3, **settings, **GRAPHS)
    with torch.no_grad(), attach(tower, config, backend) as cacher:
        ours = []
        for rows in torch.arange(48).split(sizes):
            with cacher.streams([streams[row] for row in rows]):
                ours.append(tower(clip[rows]).last_hidden_state)
        assert backend.captures > 0 and cacher._graphs.replays > backend.captures
        assert cacher.stats.frames == stats.frames
        assert cacher.stats.tokens_recomputed == stats.tokens_recomputed
    # Kept all along: no output is written over by a later replay.
    close(torch.cat(ours), expected)


def test_hidden_states_and_hooks_are_intact(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(8)
    with torch.no_grad():
        dense = tower(clip, output_hidden_states=True).hidden_states
        config = CacherConfig.paper(update_ratio=1.0, refresh_interval=2, **GRAPHS)
        seen = []
        hook = tower.encoder.layers[1].register_forward_hook(lambda m, i, o: seen.append(o))
        with attach(tower, config, Repeats()) as cacher:
            states = [tower(frame[None], output_hidden_states=True).hidden_states for frame in clip]
            assert cacher._graphs.replays > 0
        hook.remove()
    for number, expected in enumerate(dense):
        close(torch.cat([frame[number] for frame in states]), expected)
    close(torch.cat(seen), dense[2])


def replaced(module, inputs, output):
    return output.flip(-1)


def written(module, inputs, output):
    output.copy_(output.flip(-1))


@pytest.mark.parametrize("change", [replaced, written])
@pytest.mark.parametrize("after", [0, 5])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_tokens_changed_between_layers_run_eagerly(make_tower, make_clip, change, after, mode):
    tower, clip = make_tower(), make_clip(36)
    results, warned = [], []
    for graph in (False, True):
        config = CacherConfig.paper(refresh_interval=3, cuda_graph=graph)
        backend = Repeats()
        with mode(), attach(tower, config, backend if graph else None) as cacher:
            outputs = []
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                for number, batch in enumerate(clip.split(4)):
                    if number == after:
                        hook = tower.encoder.layers[0].register_forward_hook(change)
                    outputs.append(tower(batch).last_hidden_state)
            hook.remove()
            results.append((torch.cat(outputs), cacher.stats))
    close(results[1][0], results[0][0])
    assert results[1][1] == results[0][1]
    assert (backend.captures > 0) == (after > 0)
    assert [str(each.message).count("changes their tokens") for each in warned] == [1]


def test_new_weights_and_new_streams_are_captured_anew(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(12)
    backend = Repeats()
    config = CacherConfig.paper(update_ratio=1.0, refresh_interval=100, **GRAPHS)
    with torch.no_grad(), attach(tower, config, backend) as cacher:
        for frame in clip[:3]:
            tower(frame[None])
        captured = backend.captures
        assert captured == 1
        for layer in tower.encoder.layers:
            layer.self_attn.v_proj.weight.mul_(-2)
        with cacher.paused():
            dense = tower(clip[3:6]).last_hidden_state
        cacher.reset()
        close(torch.cat([tower(frame[None]).last_hidden_state for frame in clip[3:6]]), dense)
        with cacher.streams(range(6)):
            ours = [tower(clip[:6]).last_hidden_state for _ in range(4)]
        with cacher.paused():
            dense = tower(clip[:6]).last_hidden_state
        for each in ours:
            close(each, dense)
        assert backend.captures > captured


def test_graphs_are_bounded(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(6)
    config = CacherConfig.paper(refresh_interval=100, **GRAPHS)
    with torch.no_grad(), attach(tower, config, Repeats(), most=2) as cacher:
        for size in (1, 2, 3, 4, 5, 6) * 3:
            with cacher.streams(range(size)):
                tower(clip[:size])
                tower(clip[:size])
        assert len(cacher._graphs) == 2
        assert cacher._graphs.bytes > 0
        cacher.reset()
        assert len(cacher._graphs) == 0


@pytest.mark.parametrize("backend", [Repeats(fails=True), CudaBackend()])
def test_what_cannot_be_captured_runs_eagerly_with_one_warning(make_tower, make_clip, backend):
    tower, clip = make_tower(), make_clip(8)
    config = CacherConfig.paper(refresh_interval=100, **GRAPHS)
    with torch.no_grad():
        with attach_cacher(tower, CacherConfig.paper(refresh_interval=100)):
            expected = torch.cat([tower(frame[None]).last_hidden_state for frame in clip])
        with attach(tower, config, backend) as cacher:
            with pytest.warns(RuntimeWarning, match="run eagerly") as warned:
                ours = torch.cat([tower(frame[None]).last_hidden_state for frame in clip])
            assert len(warned) == 1
            assert len(cacher._graphs) == 0
    close(ours, expected)


def test_hooks_inside_a_layer_are_not_left_out(make_tower, make_clip):
    tower, clip, seen = make_tower(), make_clip(6), []
    tower.encoder.layers[1].mlp.fc1.register_forward_hook(lambda m, i, o: seen.append(o))
    config = CacherConfig.paper(refresh_interval=100, self_check=False, **GRAPHS)
    with torch.no_grad(), attach(tower, config, Repeats()):
        tower(clip[:1])
        tower(clip[1:2])
        with pytest.warns(RuntimeWarning, match=r"mlp\.fc1 of layer 1 has forward hooks"):
            tower(clip[2:3])
        for frame in clip[3:]:
            tower(frame[None])
    assert len(seen) == 6


def test_autocast_and_recordings_run_eagerly(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(4)
    with torch.no_grad(), attach(tower, CacherConfig.paper(**GRAPHS), Repeats()) as cacher:
        for frame in clip:
            with cacher.record() as recording:
                tower(frame[None])
            assert len(recording) == 3
        assert cacher._graphs.replays == 0
        with pytest.warns(RuntimeWarning, match="autocast"), torch.autocast("cpu", torch.bfloat16):
            tower(clip[:1])


def test_graphs_from_inference_mode_serve_outside_it(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(8)
    config = CacherConfig.paper(update_ratio=1.0, refresh_interval=2, **GRAPHS)
    with torch.no_grad():
        dense = tower(clip).last_hidden_state
    with attach(tower, config, Repeats()):
        with torch.inference_mode():
            first = torch.cat([tower(frame[None]).last_hidden_state for frame in clip[:4]])
        with torch.no_grad():
            second = torch.cat([tower(frame[None]).last_hidden_state for frame in clip[4:]])
    close(torch.cat([first, second]), dense)


def test_a_graph_needs_a_fixed_budget():
    with pytest.raises(ValueError, match="leave threshold None"):
        CacherConfig.paper(threshold=0.9, **GRAPHS)
