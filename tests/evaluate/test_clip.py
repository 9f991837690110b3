"""Methods over a clip, against a plain statement with one Cacher and the last output again."""

from __future__ import annotations

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from stc_stream.cacher import CacherConfig, attach_cacher
from stc_stream.evaluate.clip import ClipRun, run_clip
from stc_stream.evaluate.method import Method
from stc_stream.evaluate.methods import read_method
from stc_stream.evaluate.variants import shared_copy
from stc_stream.towers.load import VisionModel

HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def model(seed: int) -> VisionModel:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = SiglipVisionConfig(
        num_hidden_layers=2, image_size=64, patch_size=16, vision_use_head=False, **sizes
    )
    module = SiglipVisionModel(config).eval().requires_grad_(False)
    cpu = torch.device("cpu")
    return VisionModel(module, "tiny", False, 64, 16, 32, 2, HALF, HALF, cpu, torch.float32)


def test_a_clip_is_what_a_plain_statement_gives(
    model: VisionModel, generator: torch.Generator
) -> None:
    frames = torch.randn(7, 3, 64, 64, generator=generator)
    config = CacherConfig.paper(0.25, 3)
    seen = []
    methods = [Method("dense"), Method("stc", config), read_method("skip:refresh_interval=3")]
    inputs = (model.inputs(frame[None]) for frame in frames)
    dense_run, stc, skip = run_clip(model, methods, inputs, seen.append)
    dense = model.module(frames).last_hidden_state
    copy = shared_copy(model.module)
    with attach_cacher(copy, config) as cacher:
        ours = torch.cat([copy(frame[None]).last_hidden_state for frame in frames])
        stats = cacher.stats
    again = dense[[0, 0, 0, 3, 3, 3, 6]]
    for run, tokens in ((dense_run, dense), (stc, ours), (skip, again)):
        expected = torch.cosine_similarity(tokens, dense, dim=-1).mean(1)
        assert run.cosines == pytest.approx(expected.tolist(), abs=1e-5)
    every_third = tuple(number % 3 == 0 for number in range(7))
    assert dense_run.whole == (True,) * 7 and dense_run.shares == (1.0,) * 7
    assert stc.whole == skip.whole == every_third
    computed = stats.tokens_recomputed / (stats.tokens_recomputed + stats.tokens_reused)
    assert sum(stc.shares) / 7 == pytest.approx(computed)
    assert skip.shares == tuple(map(float, every_third))
    assert len(seen) == 7 and all(len(frame.runs) == 3 for frame in seen)
    assert stc.dense_seconds == tuple(frame.dense_seconds for frame in seen)
    assert stc.seconds == tuple(frame.runs[1].seconds for frame in seen)


def test_the_time_ratio_is_the_median_of_the_frames_own() -> None:
    whole = (True, False, False, True, False)
    run = ClipRun(
        (1.0,) * 5, whole, (1.0,) * 5, (3.0, 1.0, 9.0, 5.0, 4.0), (2.0, 2.0, 3.0, 2.0, 4.0)
    )
    assert run.time_ratio(whole=True) == (3 / 2 + 5 / 2) / 2
    assert run.time_ratio(whole=False) == 1.0
    assert ClipRun((1.0,), (True,), (1.0,), (1.0,), (1.0,)).time_ratio(whole=False) is None


def test_a_clip_without_frames_is_refused(model: VisionModel) -> None:
    with pytest.raises(ValueError, match="^frames must hold at least one frame, but is empty"):
        run_clip(model, [Method("dense")], [])
