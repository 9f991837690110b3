"""The tower that sessions share: one Cacher, a stream for each, nothing left behind."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from dataclasses import replace
from types import MethodType

import pytest
import torch
import transformers
from session.conftest import QUESTION, steps_of_a_quarter

from stc_stream import CacherConfig, StreamingSession, attach_cacher
from stc_stream.evaluate.methods import read_method
from stc_stream.session.memory import FullMemory


def is_plain(model) -> bool:
    """Say whether nothing is attached to a model."""
    # transformers 5.0 leaves a module's own method there after collecting hidden states.
    return all(
        module.__dict__[name] == MethodType(getattr(type(module), name), module)
        for module in model.modules()
        for name in ("forward", "get_video_features", "get_image_features", "generate")
        if name in module.__dict__
    )


def tower_layer(model, number: int) -> torch.nn.Module:
    """Return a layer of a model's tower, which has had two homes in it."""
    if hasattr(model.model, "visual"):
        return model.model.visual.blocks[number]
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower).encoder.layers[number]


def test_the_cacher_comes_off_with_the_last_session(case, frames):
    config = CacherConfig.paper()
    first = StreamingSession(case.model, case.processor, cacher=config)
    second = StreamingSession(case.model, case.processor, cacher=CacherConfig.paper())
    dense = StreamingSession(case.model, case.processor)
    first.close()
    assert not is_plain(case.model)
    second.feed(frames)
    second.close()
    assert is_plain(case.model)
    dense.feed(frames[:2])
    torch.testing.assert_close(dense.logits(QUESTION), case.logits(frames[:2]), atol=1e-4, rtol=0)
    dense.close()


def test_a_session_that_is_forgotten_gives_the_tower_back(case, frames):
    session = StreamingSession(case.model, case.processor, cacher=CacherConfig.paper())
    session.feed(frames[:1])
    fork = session.fork()
    del session
    gc.collect()
    assert not is_plain(case.model)
    del fork
    gc.collect()
    assert is_plain(case.model)


def test_a_session_that_is_collected_within_a_forward(case, frames):
    session = StreamingSession(case.model, case.processor, cacher=CacherConfig.paper())
    forgotten = [StreamingSession(case.model, case.processor, cacher=CacherConfig.paper())]
    layer = tower_layer(case.model, 0)
    hook = layer.register_forward_pre_hook(lambda *_: forgotten.clear())
    session.feed(frames[: case.deep])
    hook.remove()
    assert not is_plain(case.model)
    session.close()
    assert is_plain(case.model)


def test_a_dense_session_beside_one_with_a_cacher(case, generator):
    clip = steps_of_a_quarter(4, generator)
    expected = case.logits(clip)
    config = CacherConfig.paper(update_ratio=0.02, refresh_interval=4)
    with (
        StreamingSession(case.model, case.processor, cacher=config) as cached,
        StreamingSession(case.model, case.processor) as dense,
    ):
        for frame in clip:
            cached.feed(frame[None])
            dense.feed(frame[None])
        torch.testing.assert_close(dense.logits(QUESTION), expected, atol=1e-4, rtol=0)
        assert (cached.logits(QUESTION) - expected).abs().max() > 1e-3


def test_sessions_on_a_model_have_one_config(case):
    words = r"cacher must be CacherConfig\(.*or None, as in the other sessions on this model"
    with (
        StreamingSession(case.model, case.processor, cacher=CacherConfig.paper(0.5)),
        pytest.raises(ValueError, match=words),
    ):
        StreamingSession(case.model, case.processor, cacher=CacherConfig.paper(0.25))
    StreamingSession(case.model, case.processor, cacher=CacherConfig.paper(0.25)).close()


def test_a_cacher_of_the_users_own(case, frames):
    with attach_cacher(case.model, CacherConfig.paper(update_ratio=1.0)) as cacher:
        with pytest.raises(ValueError, match="the tower has a Cacher already"):
            StreamingSession(case.model, case.processor, cacher=CacherConfig.paper())
        with StreamingSession(case.model, case.processor) as session:
            session.feed(frames[:4])
        assert cacher.stats.frames == case.patches(frames[:4])


class Halved:
    """Another part for a tower: what it makes is halved. Counts how often it is on."""

    def __init__(self) -> None:
        self.on = 0

    @contextmanager
    def attach(self, tower):
        hook = tower.register_forward_pre_hook(lambda _, pixels: (pixels[0] * 0.5,))
        self.on += 1
        try:
            yield self
        finally:
            hook.remove()
            self.on -= 1


def test_another_part_for_the_tower(case, frames):
    part = Halved()
    with StreamingSession(case.model, case.processor, cacher=part) as session:
        assert part.on == 1
        session.feed(frames[:2])
        expected = case.logits(frames[:2])
        torch.testing.assert_close(session.logits(QUESTION), expected, atol=1e-4, rtol=0)
        for other in (None, part, CacherConfig.paper()):
            with pytest.raises(ValueError, match="has the tower to itself"):
                StreamingSession(case.model, case.processor, cacher=other)
        with pytest.raises(ValueError, match="has the tower to itself"):
            session.fork()
        assert session.stats.frames == 2
    assert part.on == 0
    assert (case.logits(frames[:2]) - expected).abs().max() > 1e-3


@pytest.mark.skipif(
    transformers.__version__.startswith("5.0."), reason="frames are not skipped in its LLaVA"
)
def test_the_parts_of_a_method_are_those_of_a_session(case, frames):
    """And what a part remembers of the tower is forgotten with the stream."""
    skipping = replace(read_method("skip:refresh_interval=8"), memory=FullMemory())
    parts = {"cacher": skipping.tower, "pruner": skipping.pruner, "memory": skipping.memory}
    with StreamingSession(case.model, case.processor, **parts) as session:
        session.feed(frames[: 2 * case.deep])
        first = frames[[*range(case.deep)] * 2]
        torch.testing.assert_close(session.logits(QUESTION), case.logits(first), atol=1e-4, rtol=0)
        session.reset()
        session.feed(frames[4 : 4 + 2 * case.deep])
        first = frames[[*range(4, 4 + case.deep)] * 2]
        torch.testing.assert_close(session.logits(QUESTION), case.logits(first), atol=1e-4, rtol=0)


def test_a_part_that_gives_a_cacher_is_on(case, generator):
    clip = steps_of_a_quarter(4, generator)
    first, dense = case.logits(clip[:1]), case.logits(clip)
    part = read_method("random_tokens:update_ratio=0.05").tower
    with StreamingSession(case.model, case.processor, cacher=part) as session:
        session.feed(clip[:1])
        torch.testing.assert_close(session.logits(QUESTION), first, atol=1e-4, rtol=0)
        session.feed(clip[1:])
        assert (session.logits(QUESTION) - dense).abs().max() > 1e-3
        # Its stream is forgotten with the session's.
        session.reset()
        session.feed(clip[:1])
        torch.testing.assert_close(session.logits(QUESTION), first, atol=1e-4, rtol=0)


def test_a_session_that_is_collected_while_another_one_joins(case, frames):
    config = CacherConfig.paper()
    forgotten = [StreamingSession(case.model, case.processor, cacher=config)]

    class Forgets(CacherConfig):
        """Lets the first session go when it is compared with the second one's settings."""

        def __eq__(self, other):
            forgotten.clear()
            gc.collect()
            return True

        __hash__ = None

    ours = Forgets(refresh_on_change=None)
    with StreamingSession(case.model, case.processor, cacher=ours) as session:
        assert not forgotten
        assert not is_plain(case.model)
        session.feed(frames[:1])
    assert is_plain(case.model)
