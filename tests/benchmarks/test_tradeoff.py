"""The trade-off's ways to run a clip, against plain statements; its files and figures."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from benchmarks import tradeoff, tradeoff_page
from stc_stream.cacher import CacherConfig, attach_cacher
from stc_stream.evaluate.variants import shared_copy
from stc_stream.towers.load import VisionModel
from stc_stream.video import open_video
from stc_stream.video.sample import sample_clip

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
}
HALF = (0.5, 0.5, 0.5)
FIGURES = ("tradeoff-heat.svg", "tradeoff.svg", "scene-cut.svg", "tradeoff-layers.svg")


def make(seed: int, prefix: int = 0) -> VisionModel:
    torch.manual_seed(seed)
    if prefix:
        module = CLIPVisionModel(CLIPVisionConfig(**TINY))
    else:
        module = SiglipVisionModel(SiglipVisionConfig(**TINY, vision_use_head=False))
    module = module.eval().requires_grad_(False)
    cpu = torch.device("cpu")
    return VisionModel(module, "tiny", False, 64, 16, 32, 3, HALF, HALF, cpu, torch.float32, prefix)


def test_every_way_is_measured_and_what_is_kept_is_read_back(seed: int, tmp_path) -> None:
    tower = make(seed)
    found = tradeoff.with_latency(tradeoff.measure(tower, sample_clip(10)), tower, 5)
    assert {row.kind for row in found.rows} == {
        "dense", "stc", "skip", "merge", "threshold", "change", "int8"
    }  # fmt: skip
    assert len(found.of("stc")) == len(tradeoff.INTERVALS) * len(tradeoff.RATIOS)
    assert all(len(row.cosines) == 10 for row in found.rows)
    assert len(found.same_choice) == 3 and all(0 <= share <= 1 for share in found.same_choice)
    # By hand: a Cacher over the clip, and the last refreshed output again.
    copy = shared_copy(tower.module)
    stc, skipped = [], []
    with attach_cacher(copy, CacherConfig.paper(0.25, 4)) as cacher:
        for number, image in enumerate(sample_clip(10).images):
            inputs = tower.batch([image])
            dense = tower.module(**inputs).last_hidden_state
            if number % 4 == 0:
                kept = dense
            skipped.append(torch.cosine_similarity(kept, dense, dim=-1).mean().item())
            ours = copy(**inputs).last_hidden_state
            stc.append(torch.cosine_similarity(ours, dense, dim=-1).mean().item())
        stats = cacher.stats
    row = found.stc(4, 0.25)
    assert row.cosines == pytest.approx(stc, abs=1e-6)
    assert (row.mean, row.worst) == pytest.approx((sum(stc) / 10, min(stc)))
    assert row.refreshes == stats.refreshes == 3
    computed = stats.tokens_recomputed / (stats.tokens_recomputed + stats.tokens_reused)
    assert row.recomputed == pytest.approx(computed)
    by_skipping = next(r for r in found.of("skip") if r.settings == {"refresh_interval": 4})
    assert by_skipping.cosines == pytest.approx(skipped, abs=1e-6)
    assert by_skipping.recomputed == pytest.approx(0.3)

    tradeoff.save(found, tmp_path / "t")
    kept_rows = tradeoff.load(tmp_path / "t.json")
    assert [tradeoff_page.label(r) for r in kept_rows.rows] == [
        tradeoff_page.label(r) for r in found.rows
    ]
    assert kept_rows.stc(4, 0.25).mean == pytest.approx(row.mean, abs=1e-5)
    page = (tmp_path / "t.md").read_text()
    assert "| STC, N=4, r=0.25 |" in page and "| skipping, N=8 |" in page
    # A refresh is a dense frame with more to do; what is skipped costs nothing.
    assert found.of("dense")[0].latency == 1.0
    assert by_skipping.latency == pytest.approx(0.3)
    assert all(each.selective > 0 for each in found.rows if each.kind not in ("dense", "skip"))
    assert row.whole > 0 and found.dense_ms > 0
    assert row.whole == found.stc(8, 0.25).whole
    assert tradeoff.main(["--draw", str(tmp_path / "t.json"), "--figures", str(tmp_path)]) == 0
    for name in FIGURES:
        assert ElementTree.parse(tmp_path / name).getroot().tag.endswith("svg")


def test_latency_is_of_the_whole_clip() -> None:
    row = tradeoff.Row("stc", {}, 1.2, 0.4, (1.0,) * 10, 3, 0.5)
    assert row.latency == pytest.approx((3 * 1.2 + 7 * 0.4) / 10)


def test_what_was_kept_is_timed_again(seed: int, tmp_path, capsys, monkeypatch) -> None:
    tower = make(seed)
    monkeypatch.setattr(tradeoff, "build_tower", lambda *_, **__: tower)
    found = tradeoff.measure(tower, sample_clip(5))
    tradeoff.save(tradeoff.with_latency(found, tower, 3), tmp_path / "t")
    before = tradeoff.load(tmp_path / "t.json")
    arguments = ["--retime", str(tmp_path / "t.json"), "--figures", str(tmp_path)]
    assert tradeoff.main(arguments) == 0
    after = tradeoff.load(tmp_path / "t.json")
    assert [row.cosines for row in after.rows] == [row.cosines for row in before.rows]
    assert after.dense_ms != before.dense_ms
    tradeoff.save(tradeoff.replace(before, about={**before.about, "tower": "x"}), tmp_path / "t")
    assert tradeoff.main(arguments) == 2
    assert "is of x, not of tiny" in capsys.readouterr().err


def test_a_video_by_another_towers_latency(seed: int, tmp_path, monkeypatch) -> None:
    large = tradeoff.with_latency(tradeoff.measure(make(seed), sample_clip(5)), make(seed), 3)
    tradeoff.save(large, tmp_path / "large")
    small = replace(make(seed + 1), name="small", pretrained=True)
    monkeypatch.setattr(tradeoff, "load_small_tower", lambda **_: small)
    arguments = [
        "--small",
        "--latency",
        str(tmp_path / "large.json"),
        "--save",
        str(tmp_path / "t"),
    ]
    sample = str(files("stc_stream").joinpath("data/sample.mp4"))
    arguments += ["--video", sample, "--fps", "4", "--frames", "9"]
    assert tradeoff.main(arguments) == 0
    found = tradeoff.load(tmp_path / "t.json")
    assert found.about["tower"] == "small"
    assert found.about["timed"] == "3 layers of tiny"
    assert found.stc(4, 0.25).selective == pytest.approx(large.stc(4, 0.25).selective, rel=1e-3)
    assert found.stc(4, 0.25).refreshes == 3
    # By layer and by frames since the refresh, by hand.
    with open_video(sample, fps=4, frames=9) as video:
        images = [frame.image for frame in video]
    copy, dense = shared_copy(small.module), [[] for _ in range(3)]
    ours = [[] for _ in range(3)]
    with attach_cacher(copy, CacherConfig.paper(0.25, 8)), torch.inference_mode():
        for image in images:
            for module, rows in ((small.module, dense), (copy, ours)):
                states = module(**small.batch([image]), output_hidden_states=True).hidden_states
                for layer in range(3):
                    rows[layer].append(states[layer + 1])
    assert found.fidelity is not None and found.fidelity.ages == tuple(range(8))
    # The last of the hidden states is the tower's output, after a norm.
    for layer in range(2):
        expected = torch.cosine_similarity(torch.cat(ours[layer]), torch.cat(dense[layer]), dim=-1)
        # Two of the nine frames are refreshes, of age 0.
        assert found.fidelity.layers[layer][1:] == pytest.approx(
            expected.mean(1)[1:8].tolist(), abs=1e-5
        )
    lacking = replace(large, rows=large.rows[:2])
    with pytest.raises(ValueError, match="^tiny was not timed with STC, N=2, r=0.25"):
        tradeoff.with_latency_of(found, lacking, small)
    assert tradeoff.main(["--layers", "1", "--video", str(tmp_path / "none.mp4")]) == 2


def test_bad_input_is_one_line(capsys, tmp_path) -> None:
    assert tradeoff.main(["--layers", "99"]) == 2
    assert "layers must be 1 to 12" in capsys.readouterr().err
    assert tradeoff.main(["--model", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert tradeoff.main(["--layers", "1", "--method", "magic"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("tradeoff: method must be one of dense, ") and err.count("\n") == 1
    assert tradeoff.main(["--tower", "qwen2-vl", "--layers", "1"]) == 2
    assert "packed frames cannot be" in capsys.readouterr().err


def test_any_method_can_be_named(seed: int, tmp_path) -> None:
    tower, name = make(seed), "random_tokens:refresh_interval=2"
    found = tradeoff.with_latency(tradeoff.measure(tower, sample_clip(5), (name,)), tower, 3)
    (row,) = found.of("method")
    assert tradeoff_page.label(row) == name
    assert row.refreshes == 3 and row.whole > 0 and row.selective > 0
    assert row.recomputed == pytest.approx((3 + 2 * 0.25) / 5)
    tradeoff.save(found, tmp_path / "t")
    assert f"| {name} |" in (tmp_path / "t.md").read_text()
    kept = tradeoff.load(tmp_path / "t.json")
    assert kept.of("method")[0].settings == {"method": name}
    tradeoff_page.draw(kept, tmp_path)
    assert name in (tmp_path / "tradeoff.svg").read_text()


RESULTS = sorted((Path(tradeoff.__file__).parent / "results").glob("*-tradeoff*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_what_is_committed_can_be_drawn(path: Path, tmp_path) -> None:
    found = tradeoff.load(path)
    assert path.with_suffix(".md").read_text(encoding="utf-8") == tradeoff_page.markdown(found)
    assert tradeoff.main(["--draw", str(path), "--figures", str(tmp_path)]) == 0
    for name in FIGURES[: 3 + (found.fidelity is not None)]:
        assert ElementTree.parse(tmp_path / name).getroot().tag.endswith("svg")


def test_scene_cut_settings_are_told_apart(seed: int) -> None:
    found = tradeoff.measure(make(seed), sample_clip(3))
    labels = [tradeoff_page.label(row) for row in found.rows]
    assert len(labels) == len(set(labels))
    assert json.dumps(found.about)
