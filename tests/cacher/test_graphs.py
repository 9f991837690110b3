"""Batches run from graphs, with a backend that repeats the work where a GPU would be needed."""

from __future__ import annotations

import warnings

import pytest
import torch
from cacher.conftest import Repeats
from cacher.fake_gpu import FakeGpus, on_gpu
from transformers.modeling_outputs import BaseModelOutput

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


INNER = {"output_hidden_states": True}


def test_a_replay_gives_what_somebody_takes(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(4)
    tower(clip[:1], **INNER)
    config = CacherConfig.paper(update_ratio=1.0, refresh_interval=100, self_check=False, **GRAPHS)
    held = {}
    with torch.no_grad():
        dense = tower(clip, **INNER).hidden_states
        # transformers' own hooks are on the layers by now, and at rest.
        assert tower.encoder.layers[0]._forward_hooks
        for name, asked in (("last", {}), ("all", INNER)):
            with attach(tower, config, Repeats()) as cacher:
                found = [tower(frame[None], **asked) for frame in clip]
                assert cacher._graphs.replays == 2
                held[name] = cacher._graphs.bytes
                for frame, other in zip(found, dense[-1], strict=True):
                    last = frame.hidden_states[-1][0] if asked else frame.last_hidden_state[0]
                    close(last, other if asked else tower.post_layernorm(other))
                if asked:
                    for number, expected in enumerate(dense):
                        close(torch.cat([frame.hidden_states[number] for frame in found]), expected)
    output = dense[1][0].numel() * dense[1].element_size()
    assert held["all"] - held["last"] == 2 * output


class Collecting(torch.nn.Module):
    """An encoder that is asked for in its own words, and keeps what layers give as it likes."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers
        self.asked = "nothing"
        self.kept = []

    def forward(self, inputs_embeds, ask="nothing", **kwargs):
        x, self.kept = inputs_embeds, []
        ask = self.asked if ask == "nothing" else ask
        for number, layer in enumerate(self.layers):
            if (ask, number) in (("skip", 1), ("stop", 2)):
                continue
            x = layer(x, attention_mask=None)
            if ask == "keep":
                self.kept.append(x)
            if ask == "part":
                self.kept.append(x[:, 1:])
        return BaseModelOutput(last_hidden_state=x)


def collecting(tower):
    tower.encoder = Collecting(tower.encoder.layers)
    return tower


@pytest.mark.parametrize("ask", ["nothing", "keep", "part", "stop"])
def test_what_code_takes_is_given(make_tower, make_clip, ask):
    """Called with an argument, of which only the encoder knows what it means."""
    tower = collecting(make_tower())
    tokens = torch.randn(8, 1, 36, 32, generator=torch.Generator().manual_seed(1))
    config = CacherConfig.paper(update_ratio=1.0, refresh_interval=100, self_check=False, **GRAPHS)
    with torch.no_grad():
        expected = []
        for frame in tokens:
            last = tower.encoder(frame, ask=ask).last_hidden_state
            expected.append([*tower.encoder.kept, last])
        with attach(tower, config, Repeats()) as cacher:
            for number, frame in enumerate(tokens):
                # Another way of calling it between: it is told apart.
                if number % 2 and ask != "stop":
                    tower.encoder(frame)
                last = tower.encoder(frame, ask=ask).last_hidden_state
                for ours, other in zip([*tower.encoder.kept, last], expected[number], strict=True):
                    close(ours, other)
            # References of fewer layers than the tower has are of no use to a graph.
            assert (cacher._graphs.replays > 2) == (ask != "stop")


def test_who_takes_unasked_is_told(make_tower, make_clip):
    tower = collecting(make_tower())
    tokens = torch.randn(10, 1, 36, 32, generator=torch.Generator().manual_seed(1))
    config = CacherConfig.paper(update_ratio=1.0, refresh_interval=100, self_check=False, **GRAPHS)
    with torch.no_grad():
        tower.encoder.asked = "keep"
        tower.encoder(tokens[9])
        expected = tower.encoder.kept
        tower.encoder.asked = "nothing"
        with attach(tower, config, Repeats()) as cacher:
            for frame in tokens[:4]:
                tower.encoder(frame)
            assert cacher._graphs.replays == 2
            tower.encoder.asked = "keep"
            with pytest.raises(RuntimeError, match="was taken from a replayed batch"):
                tower.encoder(tokens[4])
            assert cacher.stats.frames == 4
            for _ in range(3):
                tower.encoder(tokens[9])
            for ours, other in zip(tower.encoder.kept, expected, strict=True):
                close(ours, other)


def test_layers_left_out_run_eagerly(make_tower):
    tower = collecting(make_tower())
    tower.encoder.asked = "skip"
    tokens = torch.randn(4, 1, 36, 32, generator=torch.Generator().manual_seed(1))
    config = CacherConfig.paper(update_ratio=1.0, refresh_interval=100, self_check=False, **GRAPHS)
    with torch.no_grad():
        expected = [tower.encoder(frame).last_hidden_state for frame in tokens]
        warned = pytest.warns(RuntimeWarning, match="leaves layers out")
        with attach(tower, config, Repeats()), warned:
            ours = [tower.encoder(frame).last_hidden_state for frame in tokens]
    for one, other in zip(ours, expected, strict=True):
        close(one, other)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_weight_that_is_put_elsewhere_is_read_there(make_tower, make_clip, name):
    tower, clip = make_tower(), make_clip(12)
    config = CacherConfig.paper(update_ratio=1.0, refresh_interval=100, self_check=False, **GRAPHS)
    backend = Repeats()
    norm = tower.encoder.layers[2].layer_norm2
    before = getattr(norm, name).data
    other = before + torch.randn_like(before)
    with torch.no_grad(), attach(tower, config, backend) as cacher:
        for number, values in enumerate([before, other, before, other]):
            getattr(norm, name).data = values
            for frame in clip[3 * number : 3 * number + 3]:
                with cacher.paused():
                    dense = tower(frame[None]).last_hidden_state
                close(tower(frame[None]).last_hidden_state, dense)
        # Weights that come back find their graph.
        assert backend.captures == 2
        replaced = torch.nn.Parameter(before * 2)
        setattr(norm, name, replaced)
        for frame in clip[:3]:
            with cacher.paused():
                dense = tower(frame[None]).last_hidden_state
            close(tower(frame[None]).last_hidden_state, dense)
        assert backend.captures == 3


def test_around_a_replay_a_frame_is_copied_in_and_out(make_tower, make_clip, monkeypatch):
    """A selective frame and a refresh frame; what the tower does itself is left out."""
    tower, clip = make_tower(vision_use_head=False), make_clip(12)
    config = CacherConfig.paper(refresh_interval=2, self_check=False, **GRAPHS)
    with FakeGpus(monkeypatch) as gpus, torch.no_grad():
        on_gpu(tower, gpus, "cuda:0")
        clip = gpus.put(clip, "cuda:0")
        launches = []
        with attach_cacher(tower, config) as cacher:
            for frame in range(12):
                gpus.launches.clear()
                tower(clip[frame : frame + 1])
                launches.append(dict(gpus.launches))
            assert cacher._graphs.replays > 6
    own = {"aten.convolution", "aten.native_layer_norm", "aten.embedding", "aten.add"}
    refresh, selective = ({k: n for k, n in x.items() if k not in own} for x in launches[-2:])
    # The tokens come transposed from the patch embedding, and are laid out for all layers once.
    assert selective == {"aten.clone": 2, "aten.copy_": 1}
    assert refresh == {"aten.clone": 2, "aten.copy_": 2}
