"""The table behind `refresh_on_change`: its rows, and what is committed of it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from benchmarks import change_threshold as bench
from stc_stream.cacher import CacherConfig, attach_cacher

RESULTS = Path(bench.__file__).parent / "results"


def test_rows_say_what_was_refreshed_and_how_close_it_stayed(seed: int) -> None:
    tower = bench.small_tower()
    module = tower.module
    module.encoder.layers = module.encoder.layers[:1]
    generator = torch.Generator().manual_seed(seed)
    scenes = torch.randn(2, 3, bench.SIDE, bench.SIDE, generator=generator)
    clip = scenes[[0, 0, 1, 1, 1]]
    plain, watched = bench.measure(tower, "cut", clip, (0.5,))
    assert (plain.threshold, plain.frames, plain.refreshes, plain.share) == (None, 5, 2, 0.4)
    assert (watched.threshold, watched.refreshes) == (0.5, 3)
    with torch.inference_mode():
        dense = module(clip).last_hidden_state
        with attach_cacher(module, CacherConfig.paper()):
            ours = module(clip).last_hidden_state
    cosines = torch.cosine_similarity(ours, dense, dim=-1).mean(1)
    assert plain.worst == pytest.approx(float(cosines.min()), abs=1e-4)
    assert plain.mean == pytest.approx(float(cosines.mean()), abs=1e-4)
    assert plain.worst < 0.9 and watched.worst == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("speed", [1, 5])
def test_a_pan_moves_the_scene_by_its_speed(speed: int) -> None:
    frames = bench.pan(speed, 32, frames=4)
    assert frames.shape == (4, 3, 32, 32)
    for now, later in itertools.pairwise(frames):
        assert torch.equal(later[:, :, :-speed], now[:, :, speed:])


def test_the_default_is_what_the_committed_table_bears_out() -> None:
    (path,) = RESULTS.glob("*-change.json")
    document = json.loads(path.read_text(encoding="utf-8"))
    rows = [bench.Row(**row) for row in document["rows"]]
    default = CacherConfig().refresh_on_change
    chosen = {row.clip: row for row in rows if row.threshold == default}
    plain = {row.clip: row for row in rows if row.threshold is None}
    real = [clip for clip in chosen if "pan" not in clip]
    assert len(real) >= 6
    assert min(chosen[clip].worst for clip in real) >= 0.95
    assert chosen["vtest.avi"].refreshes == plain["vtest.avi"].refreshes
    page = path.with_suffix(".md").read_text(encoding="utf-8")
    assert page == bench.markdown(rows, document["about"])
    cacher = (RESULTS.parents[1] / "docs" / "cacher.md").read_text(encoding="utf-8")
    for clip in chosen:
        for row in (plain[clip], chosen[clip]):
            assert f"{row.share:.2f}, {row.worst:.3f} / {row.mean:.3f}" in cacher
