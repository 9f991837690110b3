"""Methods by name in sessions: with a budget of everything dense, and causal where they say so."""

from __future__ import annotations

import pytest
import torch
from session.conftest import QUESTION, make_case, steps_of_a_quarter

from stc_stream import StreamingSession
from stc_stream.evaluate.methods import method_names, read_method

# What makes each of them keep and compute everything.
EVERYTHING = {
    "dtd": "threshold=1",
    "merge": "merged=0",
    "random_tokens": "update_ratio=1",
    "recent": "frames=99",
    "skip": "refresh_interval=1",
    "window": "window_tokens=999",
    "stc": "update_ratio=1",
    "stc_cacher": "update_ratio=1",
    "stc_paper": "update_ratio=1",
    "stc_released": "update_ratio=1",
}
WHOLE_CLIPS = {"evs", "vidcom2"}
# Draws in the order of calls, layer by layer.
UNLIKE_IN_CHUNKS = {"random_tokens"}


def logits(case, text, clip, sizes, budget=None):
    method = read_method(text, {"tokens_per_frame": budget})
    parts = {"cacher": method.tower, "pruner": method.pruner, "memory": method.memory}
    with StreamingSession(case.model, case.processor, **parts) as session:
        kept = sum(session.feed(part).kept for part in clip.split(sizes))
        return session.logits(QUESTION), kept


@pytest.fixture(scope="module")
def case():
    return make_case(torch.seed() % 2**31)


@pytest.mark.parametrize("name", method_names())
def test_with_a_budget_of_everything_answers_are_dense(case, name, generator) -> None:
    clip = steps_of_a_quarter(5, generator)
    text = f"{name}:{EVERYTHING[name]}" if name in EVERYTHING else name
    found, kept = logits(case, text, clip, [3, 2], budget=16)
    dense, everything = logits(case, "dense", clip, [3, 2])
    assert kept == everything
    torch.testing.assert_close(found, dense, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", sorted({*method_names()} - {"dense", *WHOLE_CLIPS, *UNLIKE_IN_CHUNKS})
)
def test_chunks_change_nothing(case, name, generator) -> None:
    clip = steps_of_a_quarter(5, generator)
    one_by_one = logits(case, name, clip, [1] * 5, budget=6)
    for sizes in ([5], [2, 3]):
        found = logits(case, name, clip, sizes, budget=6)
        assert found[1] == one_by_one[1]
        torch.testing.assert_close(found[0], one_by_one[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(WHOLE_CLIPS))
def test_a_rule_about_whole_clips_is_given_all_frames_of_a_feed(case, name, generator) -> None:
    """More frames than go through the tower at once."""
    clip = steps_of_a_quarter(20, generator)
    method = read_method(name, {"tokens_per_frame": 3})
    with StreamingSession(case.model, case.processor, pruner=method.pruner) as session:
        fed = session.feed(clip)
    with torch.no_grad():
        features = case.model.model.get_video_features(case.pixels(clip), return_dict=True)
    tokens = features.pooler_output[0, : 16 * 20].view(20, 16, -1)
    _, expected, _ = method.pruner.strategy.select(tokens, None, 3)
    assert [row.tolist() for row in fed.index] == [row.tolist() for row in expected]


def test_a_default_is_for_methods_that_have_it() -> None:
    assert read_method("uniform", {"tokens_per_frame": 5}).pruner.tokens_per_frame == 5
    assert read_method("uniform:tokens_per_frame=4", {"tokens_per_frame": 5}).pruner.kept_tokens(
        16
    ) == 4  # fmt: skip
    assert read_method("skip", {"tokens_per_frame": 5}) == read_method("skip")
    assert read_method("stc-cacher").tower == read_method("stc_cacher").tower
    assert read_method("random").pruner.kept_tokens(16) == 4
