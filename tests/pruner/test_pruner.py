"""Streams, layouts, inputs that are odd and inputs that are wrong."""

from __future__ import annotations

import pytest
import torch

from stc_stream import PrunerConfig, TokenPruner
from stc_stream.pruner.strategies.anchors import FrameHistory

PAPER = PrunerConfig.paper(tokens_per_frame=5)


def test_streams_do_not_touch_each_other(generator):
    door, yard = torch.randn(2, 6, 20, 16, generator=generator)
    alone = TokenPruner(PAPER)(door).index
    pruner = TokenPruner(PAPER)
    parts = []
    for t in range(6):
        parts.append(pruner(door[t : t + 1], stream="door").index)
        pruner(yard[t : t + 1], stream="yard")
    assert torch.equal(torch.cat(parts), alone)


@pytest.mark.parametrize("config", [PAPER, PrunerConfig.released(5)], ids=["paper", "released"])
def test_reset_forgets_one_stream_or_all(config, generator):
    past, clip = torch.randn(2, 4, 20, 16, generator=generator)
    fresh = TokenPruner(config)(clip).index
    pruner = TokenPruner(config)
    for stream in ("door", "yard"):
        pruner(past + 3, stream=stream)
    pruner.reset("door")
    assert torch.equal(pruner(clip, stream="door").index, fresh)
    assert not torch.equal(pruner(clip, stream="yard").index, fresh)
    with pytest.raises(ValueError, match=r"no stream is named 'garden'; streams known: 'yard', .*"):
        pruner.reset("yard", "garden")
    pruner.reset()
    assert torch.equal(pruner(clip, stream="yard").index, fresh)
    pruner.reset()
    with pytest.raises(ValueError, match="streams known: none"):
        pruner.reset("yard")


def test_after_a_name_every_call_needs_one(generator):
    clip = torch.randn(3, 20, 16, generator=generator)
    fresh, pruner = TokenPruner(PAPER)(clip).index, TokenPruner(PAPER)
    pruner(clip)  # before any name: the one stream of all
    with pytest.raises(ValueError, match="18"):
        pruner(torch.randn(1, 18, 16, generator=generator)[:, :, :0], stream="door")
    pruner(clip)
    pruner(clip[:2], stream="door")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"stream must be given, .* reset\(\)"):
            pruner(clip)
    door = pruner(clip[2:], stream="door").index
    assert torch.equal(door, fresh[2:])
    pruner.reset("door")
    with pytest.raises(ValueError, match="stream must be given"):
        pruner(clip)
    pruner.reset()
    assert torch.equal(pruner(clip).index, fresh)


def test_a_name_that_compares_by_identity_is_refused(generator):
    clip, pruner = torch.randn(2, 20, 16, generator=generator), TokenPruner(PAPER)
    for stream in (torch.tensor(1), object(), float("nan")):
        with pytest.raises(TypeError, match="names that compare by value"):
            pruner(clip, stream=stream)
        with pytest.raises(TypeError, match="names that compare by value"):
            pruner.reset(stream)
    pruner(clip)
    assert len(pruner._streams) == 1


def test_a_stream_that_is_named_twice_is_reset_once(generator):
    pruner, clip = TokenPruner(PAPER), torch.randn(2, 20, 16, generator=generator)
    pruner(clip, stream="door")
    pruner(clip, stream="yard")
    pruner.reset("door", "door")
    with pytest.raises(ValueError, match="streams known: 'yard'"):
        pruner.reset("door")


@pytest.mark.parametrize(
    ("config", "rows"),
    [
        (PAPER, 1),
        (PrunerConfig.paper(window=3), 3),
        (PrunerConfig.released(5), 1),
    ],
    ids=["all past", "window", "released"],
)
def test_the_history_does_not_grow(config, rows, generator):
    pruner = TokenPruner(config)

    def held():
        (history,) = pruner._streams.values()
        tensors = [
            value for value in vars(history.past).values() if isinstance(value, torch.Tensor)
        ]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    pruner(torch.randn(4, 20, 16, generator=generator))
    first = held()
    assert first <= rows * (16 + 1) * 8
    for frames in (1, 30, 2):
        pruner(torch.randn(frames, 20, 16, generator=generator))
        assert held() == first


@pytest.mark.parametrize("side", [1, 4, 13])
@pytest.mark.parametrize("preset", ["paper", "released"])
def test_grid_keeps_newlines_and_scores_patches(preset, side, generator):
    frames = torch.randn(5, side * (side + 1), 24, generator=generator)
    patches = frames.view(5, side, side + 1, 24)[:, :, :side].reshape(5, side * side, 24)
    k = max(1, side * side // 3)
    make = getattr(PrunerConfig, preset)
    flat = TokenPruner(make(tokens_per_frame=k))(patches).index
    pruned = TokenPruner(make(tokens_per_frame=k, layout="grid"))(frames)
    for frame in range(5):
        rows = [i // side * (side + 1) + i % side for i in flat[frame].tolist()]
        rows += [row * (side + 1) + side for row in range(side)]
        expected = rows if preset == "released" else sorted(rows)
        assert pruned.index[frame].tolist() == expected
        assert torch.equal(pruned.tokens[frame], frames[frame][expected])


def test_grid_takes_strided_frames(generator):
    frames = torch.randn(3, 24, 20, generator=generator).transpose(1, 2)
    config = PrunerConfig.paper(layout="grid")
    strided, plain = TokenPruner(config)(frames), TokenPruner(config)(frames.contiguous())
    assert torch.equal(strided.index, plain.index)
    assert torch.equal(strided.tokens, plain.tokens)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype(dtype, generator):
    clip = torch.randn(4, 20, 16, generator=generator).to(dtype)
    half = TokenPruner(PAPER)(clip)
    assert half.tokens.dtype == dtype
    assert torch.equal(half.index, TokenPruner(PAPER)(clip.float()).index)


@pytest.mark.parametrize("layout", ["flat", "grid"])
def test_no_frames_give_no_tokens(layout, generator):
    pruner = TokenPruner(PrunerConfig.paper(tokens_per_frame=5, layout=layout))
    pruned = pruner(torch.empty(0, 20, 16))
    kept = 5 if layout == "flat" else 9
    assert pruned.tokens.shape == (0, kept, 16)
    assert (pruned.index.shape, pruned.index.dtype) == ((0, kept), torch.int64)
    clip = torch.randn(3, 20, 16, generator=generator)
    fresh = TokenPruner(pruner.config)(clip)
    assert torch.equal(pruner(clip).index, fresh.index)


@pytest.mark.parametrize("window", [None, 2])
def test_a_broken_frame_does_not_spoil_the_anchor(window, generator):
    config = PrunerConfig.paper(tokens_per_frame=5, window=window)
    clip = torch.randn(6, 20, 16, generator=generator) + 1
    broken = clip.clone()
    broken[2, 7] = torch.nan
    broken[2, 9] = torch.inf
    pruned = TokenPruner(config)(broken)
    assert not {7, 9} & set(pruned.index[2].tolist())
    without = TokenPruner(config)(clip[[0, 1, 3, 4, 5]])
    at = [0, 1, 5] if window else [0, 1, 3, 4, 5]
    assert torch.equal(pruned.index[at], without.index[[0, 1, 4] if window else slice(None)])


@pytest.mark.parametrize("window", [1, 2, 5, 7, 40, 10**30, None])
def test_an_anchor_is_the_mean_of_the_frames_before(window, generator):
    means = torch.randn(23, 6, generator=generator)
    means[torch.randint(0, 23, (3,), generator=generator)] *= 1e16
    means[11] = torch.nan
    pieces, history = [], FrameHistory.empty(6, means.device)
    for calls in (1, 4, 1, 9, 2, 6):
        first = history.frames
        anchors, history = history.advance(means[first : first + calls], window)
        pieces.append(anchors)
    together, after = FrameHistory.empty(6, means.device).advance(means, window)
    assert torch.equal(torch.cat(pieces), together)
    assert torch.equal(history.means, after.means)
    for t, anchor in enumerate(together):
        past = means[0 if window is None else max(0, t - window) : t].double()
        past = past[past.isfinite().all(dim=1)]
        expected = past.mean(0) if len(past) else torch.zeros(6, dtype=torch.float64)
        loudest = float(past.abs().max()) if len(past) else 0.0
        torch.testing.assert_close(anchor.double(), expected, rtol=1e-6, atol=1e-15 * loudest)


@pytest.mark.parametrize("loud", [1e16, -3e12, 1e30])
def test_a_frame_that_is_out_of_scale_leaves_with_the_window(loud, generator):
    config = PrunerConfig.paper(tokens_per_frame=5, window=3)
    clip = torch.randn(12, 20, 16, generator=generator)
    clip[4] *= loud
    at_once, one_by_one = TokenPruner(config)(clip).index, TokenPruner(config)
    assert torch.equal(torch.cat([one_by_one(frame[None]).index for frame in clip]), at_once)
    without = TokenPruner(config)
    without(clip[5:8])
    assert torch.equal(without(clip[8:]).index, at_once[8:])


def test_a_call_that_fails_leaves_the_history(generator):
    clip = torch.randn(4, 20, 16, generator=generator)
    pruner, expected = TokenPruner(PAPER), TokenPruner(PAPER)
    pruner(clip[:2])
    expected(clip[:2])
    with pytest.raises(ValueError, match="not require grad in grad mode"):
        pruner(torch.randn(2, 20, 16, requires_grad=True))
    assert torch.equal(pruner(clip[2:]).index, expected(clip[2:]).index)


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ([[1.0]], TypeError, "tokens must be a tensor, but is a list"),
        (torch.zeros(20, 16), ValueError, r"tokens must have shape \[frames, .*\[20, 16\]"),
        (torch.zeros(2, 0, 16), ValueError, r"at least one token .* \[2, 0, 16\]"),
        (torch.zeros(2, 4, 16), ValueError, r"tokens_per_frame must be in 1\.\.4.* but is 5"),
        (torch.zeros(2, 20, 16, dtype=torch.float64), TypeError, "dtype float32.* float64"),
    ],
)
def test_bad_tokens_are_named(tokens, error, message):
    with pytest.raises(error, match=message):
        TokenPruner(PAPER)(tokens)


def test_other_widths_than_the_stream_are_named(generator):
    for config in (PAPER, PrunerConfig.released(5)):
        pruner = TokenPruner(config)
        pruner(torch.randn(2, 20, 16, generator=generator), stream="door")
        with pytest.raises(ValueError, match=r"16 channels .* 'door', but has 18: reset"):
            pruner(torch.randn(2, 20, 18, generator=generator), stream="door")
        pruner(torch.randn(2, 20, 18, generator=generator), stream="yard")


def test_a_frame_that_is_no_grid_is_named():
    with pytest.raises(ValueError, match=r"s · \(s \+ 1\) rows.* but has 169"):
        TokenPruner(PrunerConfig.paper(layout="grid"))(torch.zeros(1, 169, 8))
    with pytest.raises(ValueError, match=r"tokens_per_frame must be in 1\.\.169"):
        TokenPruner(PrunerConfig.released(170, layout="grid"))(torch.zeros(1, 182, 8))
