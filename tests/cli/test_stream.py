"""The `stc` command: what it prints, what it writes, and one line for all that is wrong."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import av
import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

import stc_kernels
from stc_stream.cacher import CacherConfig, attach_cacher
from stc_stream.evaluate.frames import FrameComparison
from stc_stream.evaluate.method import Method
from stc_stream.evaluate.methods import method_names, read_method
from stc_stream.evaluate.small_model import load_small_tower
from stc_stream.evaluate.stream import StreamComparison
from stc_stream.evaluate.summary import summarise
from stc_stream.pruner import PrunerConfig, TokenPruner
from stc_stream.report.document import stream_schema
from stc_stream.report.target import write_whole
from stc_stream.towers import load
from stc_stream.towers.load import load_tower
from stc_stream.towers.sizes import MODEL_SIZES
from stc_stream.video import open_video

from .conftest import TINY, Outcome

Stc = Callable[..., Outcome]


def test_a_stream_prints_a_table_and_writes_both_files(
    stc: Stc, tiny_model: Path, video: Path, tmp_path: Path
) -> None:
    report, document = tmp_path / "new" / "report", tmp_path / "numbers.json"
    # With the plain schedule, some of its frames are selective and have rows of their own.
    options = ("--model", tiny_model, "--refresh-on-change", 1)
    outcome = stc("stream", video, *options, "--report", report, "--json", document)
    assert outcome.code == 0
    assert outcome.err == ""
    for words in ("ViT dense", "ViT compressed", "reduction", "tokens recomputed", "tokens kept"):
        assert words in outcome.out
    assert "STC saved" in outcome.out or "STC lost" in outcome.out
    table = [line for line in outcome.out.splitlines() if line[:1] in ("┏", "┃", "├", "│", "└")]
    assert len(table) > 10
    assert max(map(len, table)) <= 80
    assert (report / "index.html").exists()
    assert [path.name for path in report.iterdir()] == ["index.html"]
    assert document.exists()


def test_one_of_a_thing_is_one(stc: Stc, tmp_path: Path, video: Path) -> None:
    torch.manual_seed(0)
    model = SiglipVisionModel(SiglipVisionConfig(**{**TINY, "num_hidden_layers": 1}))
    model.save_pretrained(tmp_path / "one")
    options = ("--model", tmp_path / "one", "--tokens-per-frame", 1, "--report", tmp_path)
    outcome = stc("stream", video, "--frames", 1, *options)
    assert "grey.mp4: 1 frame\n" in re.sub(" +\n", "\n", outcome.out)
    page = (tmp_path / "index.html").read_text()
    for words in ("1 frame ran", "1 layer of", "1 token a frame", "1; refreshes: 1;"):
        assert words in page
    assert not re.search(r"\b1 (frames|layers|tokens)\b", outcome.out + page)


def test_json_is_as_its_schema_says(
    stc: Stc, tiny_model: Path, video: Path, tmp_path: Path
) -> None:
    document = tmp_path / "numbers.json"
    # Every frame is of another brightness; the plain schedule is asked for.
    options = ("--model", tiny_model, "--refresh-interval", 3, "--refresh-on-change", 1)
    options = (*options, "--tokens-per-frame", 5)
    assert stc("stream", video, *options, "--fps", 2, "--json", document).code == 0
    numbers = json.loads(document.read_text())
    jsonschema.Draft202012Validator.check_schema(stream_schema())
    jsonschema.validate(numbers, stream_schema())
    assert numbers["complete"]
    assert numbers["source"] == {"name": "grey.mp4", "fps": 2}
    assert numbers["config"]["cacher"]["refresh_interval"] == 3
    assert numbers["config"]["cacher"]["refresh_on_change"] == 1
    assert numbers["config"]["cacher"]["max_refresh_ratio"] is None
    assert [frame["index"] for frame in numbers["frames"]] == [0, 2, 4, 6]
    assert [frame["refreshed"] for frame in numbers["frames"]] == [True, False, False, True]
    assert {frame["tokens_kept"] for frame in numbers["frames"]} == {5}
    dense = sum(frame["dense_ms"] for frame in numbers["frames"])
    compressed = sum(frame["compressed_ms"] for frame in numbers["frames"])
    assert numbers["summary"]["reduction"] == pytest.approx(1 - compressed / dense)
    assert [frame["age"] for frame in numbers["frames"]] == [0, 1, 2, 0]
    fidelity = numbers["fidelity"]
    assert (fidelity["ages"], fidelity["frames"]) == ([0, 1, 2], [2, 1, 1])
    assert fidelity["features"][1:] == [frame["cosine"] for frame in numbers["frames"][1:3]]
    # The schema is closed: a field that it does not know is an error.
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**numbers, "more": 1}, stream_schema())


def test_closeness_under_random_weights_is_a_trained_towers(
    stc: Stc, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = MODEL_SIZES["siglip-base"]
    small = replace(base, image_size=64, width=32, mlp=64, heads=2, layers=2)
    monkeypatch.setattr(load, "MODEL_SIZES", {"siglip-base": small})
    document = tmp_path / "numbers.json"
    outcome = stc("stream", video, "--json", document, "--report", tmp_path)
    assert "Cosines are of the small trained tower" in " ".join(outcome.out.split())
    numbers = json.loads(document.read_text())
    jsonschema.validate(numbers, stream_schema())
    assert (numbers["model"]["tokens"], numbers["closeness_model"]["tokens"]) == (16, 144)
    assert (numbers["model"]["pretrained"], numbers["closeness_model"]["pretrained"]) == (
        False,
        True,
    )
    trained = load_small_tower(device="cpu")
    with FrameComparison(trained, [Method("stc", CacherConfig())], layers=True) as comparison:
        with open_video(str(video)) as frames, torch.inference_mode():
            runs = [comparison.step(trained.batch([frame.image])).runs[0] for frame in frames]
        (fidelity,) = comparison.fidelity
    for frame, run in zip(numbers["frames"], runs, strict=True):
        assert frame["cosine"] == pytest.approx(float(run.cosine.mean()), abs=1e-6)
        assert frame["cosine_min"] == pytest.approx(float(run.cosine.min()), abs=1e-6)
    assert len(numbers["fidelity"]["layers"]) == trained.layers
    assert numbers["fidelity"]["features"] == pytest.approx(fidelity.features, abs=1e-6)
    assert "Closeness to dense is that of the small trained tower" in (
        tmp_path / "index.html"
    ).read_text(encoding="utf-8")


def test_a_method_is_named_with_its_settings(
    stc: Stc, tiny_model: Path, video: Path, tmp_path: Path
) -> None:
    document = tmp_path / "numbers.json"
    options = ("--method", "skip:refresh_interval=3", "--report", tmp_path, "--json", document)
    outcome = stc("stream", video, "--model", tiny_model, *options, "--tokens-per-frame", 5)
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(r"skip:refresh_interval=3 (saved|lost)", outcome.out)
    numbers = json.loads(document.read_text())
    jsonschema.validate(numbers, stream_schema())
    assert numbers["config"]["method"] == "skip:refresh_interval=3"
    assert numbers["config"]["cacher"] is None
    assert numbers["config"]["pruner"]["tokens_per_frame"] == 5
    assert [frame["age"] for frame in numbers["frames"][:4]] == [0, 1, 2, 0]
    assert "by the method skip:refresh_interval=3." in (tmp_path / "index.html").read_text()


def test_stc_by_name_is_what_runs_by_default(
    stc: Stc, tiny_model: Path, video: Path, tmp_path: Path
) -> None:
    found = []
    for more in ((), ("--method", "stc"), ("--method", "stc:refresh_interval=4")):
        document = tmp_path / "numbers.json"
        assert stc("stream", video, "--model", tiny_model, *more, "--json", document).code == 0
        numbers = json.loads(document.read_text())
        found.append((numbers["config"]["cacher"], numbers["config"]["pruner"]))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--method", "tome"), f"--method must be one of {', '.join(method_names())}"),
        (("--method", "skip:n=2"), "--method skip has refresh_interval, but no 'n'"),
        (("--method", "skip:refresh_interval=x"), "--method skip: refresh_interval must be a"),
        (("--method", "skip", "--update-ratio", "0.5"), "--update-ratio is for stc alone: give"),
        (("--method", ""), "'--method': it is empty"),
        (("--method", "recent"), "--method recent is what a language model remembers: give --ask"),
        (
            ("--method", "dtd", "--tokens-per-frame", "3"),
            "--tokens-per-frame is not for dtd, which",
        ),
    ],
)
def test_what_is_no_method_is_told_in_a_line(
    stc: Stc, tiny_model: Path, video: Path, arguments: tuple[str, ...], words: str
) -> None:
    outcome = stc("stream", video, "--model", tiny_model, *arguments)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert words in outcome.err


def test_the_comparison_measures_what_a_plain_statement_does(
    tiny_model: Path, sample: Path
) -> None:
    """Dense features, chosen patches and kept tokens against the tower and ops called by hand."""
    frames = list(open_video(sample, frames=5))
    tower = load_tower(str(tiny_model), device="cpu")
    plain = load_tower(str(tiny_model), device="cpu")
    pruner = TokenPruner(PrunerConfig.paper(tokens_per_frame=4))
    config = CacherConfig.paper(update_ratio=0.25, refresh_interval=2)
    results = []
    method = Method("stc", config, PrunerConfig.paper(tokens_per_frame=4))
    with StreamComparison(tower, method) as comparison:
        results = [comparison.step(frame) for frame in frames]
    assert "forward" not in vars(tower.module.encoder)
    for frame, result in zip(frames, results, strict=True):
        pixels = plain.pixel_values(plain.square(frame.image))
        with torch.no_grad():
            dense = plain.module(pixels).last_hidden_state
        numbers, view = result.numbers, result.view
        assert numbers.refreshed == (frame.index % 2 == 0)
        assert numbers.dense_ms > 0
        assert numbers.compressed_ms > 0
        if numbers.refreshed:
            assert view.recomputed.min() == 1
            assert view.similarity is None
            assert numbers.cosine == pytest.approx(1, abs=1e-5)
            assert numbers.tokens_recomputed == 16
            kept = pruner(dense).index[0]
            np.testing.assert_array_equal(np.flatnonzero(view.kept), kept.numpy())
        else:
            pruner(dense)
            assert numbers.tokens_recomputed == pytest.approx(4)
            assert view.recomputed.sum() == pytest.approx(4)
            assert view.similarity is not None
            assert numbers.cosine is not None
            assert 0.5 < numbers.cosine < 1 + 1e-5


@pytest.mark.parametrize(
    ("name", "refreshed", "recomputed"),
    [
        ("dense", [True] * 5, [16] * 5),
        ("skip:refresh_interval=3", [True, False, False, True, False], [16, 0, 0, 16, 0]),
        ("merge:merged=4", [False] * 5, [10] * 5),
        ("random_tokens:refresh_interval=2", [True, False] * 2 + [True], [16, 4, 16, 4, 16]),
    ],
)
def test_any_method_is_held_against_dense(
    tiny_model: Path, sample: Path, name: str, refreshed: list[bool], recomputed: list[int]
) -> None:
    tower = load_tower(str(tiny_model), device="cpu")
    method = read_method(name)
    copy = load_tower(str(tiny_model), device="cpu")
    part = nullcontext() if method.tower is None else method.tower.attach(copy.module)
    with StreamComparison(tower, method) as comparison, part, torch.inference_mode():
        for frame in open_video(sample, frames=5):
            result = comparison.step(frame)
            inputs = tower.batch([frame.image])
            own, dense = (each.module(**inputs).last_hidden_state[0] for each in (copy, tower))
            cosine = torch.cosine_similarity(own, dense, dim=-1)
            numbers, view = result.numbers, result.view
            assert numbers.refreshed is refreshed[frame.index]
            assert numbers.tokens_recomputed == pytest.approx(recomputed[frame.index])
            assert view.recomputed.sum() == pytest.approx(recomputed[frame.index])
            if not name.startswith("random"):
                assert numbers.cosine == pytest.approx(float(cosine.mean()), abs=1e-5)
                assert numbers.cosine_min == pytest.approx(float(cosine.min()), abs=1e-5)
            assert numbers.tokens_kept == 16 and numbers.age <= frame.index
        fidelity = comparison.fidelity
    assert fidelity is not None and sum(fidelity.frames) == 5
    # A skipped frame has no layers to compare, and merged tokens are none of the dense layer's.
    known = [[cosine is not None for cosine in layer] for layer in fidelity.layers]
    whole = [age == 0 and any(refreshed) for age in fidelity.ages]
    if name.startswith("skip"):
        assert known == [whole] * 2
    assert "forward" not in vars(tower.module.encoder)


@pytest.mark.parametrize("name", ["uniform", "dtd", "evs_per_frame", "visionzip", "streamingtom"])
def test_a_method_that_chooses_tokens_does_so_itself(
    tiny_model: Path, sample: Path, name: str
) -> None:
    tower = load_tower(str(tiny_model), device="cpu")
    method = read_method(name, {"tokens_per_frame": 5})
    with StreamComparison(tower, method) as comparison:
        results = [comparison.step(frame) for frame in open_video(sample, frames=3)]
    whole = [name in ("dtd", "evs_per_frame"), False, False]
    for result, first in zip(results, whole, strict=True):
        assert result.numbers.cosine == pytest.approx(1, abs=1e-5)
        assert result.view.kept.sum() == result.numbers.tokens_kept
        if first:
            assert result.numbers.tokens_kept == 16
        elif name != "dtd":
            assert result.numbers.tokens_kept == 5


def test_a_class_token_is_no_patch(tmp_path: Path, sample: Path) -> None:
    torch.manual_seed(4)
    CLIPVisionModel(CLIPVisionConfig(**TINY)).save_pretrained(tmp_path)
    tower = load_tower(str(tmp_path), device="cpu")
    plain = load_tower(str(tmp_path), device="cpu")
    assert (tower.tokens, tower.prefix_tokens) == (16, 1)
    with StreamComparison(tower, Method("stc", CacherConfig.paper(0.25, 3))) as comparison:
        results = [comparison.step(frame) for frame in open_video(sample, frames=3)]
        fidelity = comparison.fidelity
    copy = load_tower(str(tmp_path), device="cpu")
    with attach_cacher(copy.module, CacherConfig.paper(0.25, 3)):
        for result in results:
            numbers = result.numbers
            assert numbers.tokens_recomputed == pytest.approx(16 if numbers.refreshed else 4)
            assert result.view.recomputed.shape == (4, 4)
            pixels = plain.batch([result.view.image])["pixel_values"]
            patches = [
                tower.module(pixels, output_hidden_states=True).hidden_states[1][:, 1:]
                for tower in (plain, copy)
            ]
            cosine = torch.cosine_similarity(*patches, dim=-1).mean().item()
            assert fidelity is not None
            assert fidelity.layers[0][numbers.age] == pytest.approx(cosine, abs=1e-6)
            assert not numbers.refreshed or numbers.cosine == pytest.approx(1, abs=1e-5)


def test_ratio_one_is_dense(tiny_model: Path, sample: Path) -> None:
    tower = load_tower(str(tiny_model), device="cpu")
    whole = CacherConfig.paper(update_ratio=1.0, refresh_interval=9)
    with StreamComparison(tower, Method("stc", whole, PrunerConfig.paper())) as comparison:
        for frame in open_video(sample, frames=3):
            numbers = comparison.step(frame).numbers
            assert numbers.cosine_min == pytest.approx(1, abs=1e-5)


def test_the_sample_has_one_cut_and_it_is_found(tiny_model: Path, sample: Path) -> None:
    tower = load_tower(str(tiny_model), device="cpu")
    with StreamComparison(tower, Method("stc", CacherConfig.paper())) as comparison:
        rows = [comparison.step(frame).numbers for frame in open_video(sample)]
    assert summarise(rows, tower.tokens).scene_cuts == (25,)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(stc: Stc, tiny_model: Path, video: Path, dtype: str) -> None:
    outcome = stc("stream", video, "--model", tiny_model, "--dtype", dtype, "--device", "cpu")
    assert (outcome.code, outcome.err) == (0, "")


def test_a_folder_of_images_streams(stc: Stc, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shots"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (20 + number, 30), (50 * number, 9, 9)).save(folder / f"{number}.png")
    outcome = stc("stream", folder, "--model", tiny_model)
    assert (outcome.code, outcome.err) == (0, "")
    assert "shots: 3 frames" in outcome.out


def test_a_cut_video_streams_with_a_warning(
    stc: Stc, tiny_model: Path, sample: Path, tmp_path: Path
) -> None:
    cut, document = tmp_path / "cut.mp4", tmp_path / "numbers.json"
    cut.write_bytes(sample.read_bytes()[: sample.stat().st_size // 3])
    outcome = stc("stream", cut, "--model", tiny_model, "--json", document)
    assert outcome.code == 0
    assert "warning: cut.mp4: the video is cut short: it ends at frame" in outcome.err
    numbers = json.loads(document.read_text())
    jsonschema.validate(numbers, stream_schema())
    assert f"ends at frame {numbers['frames'][-1]['index']}" in numbers["warnings"][-1]


def test_a_moving_camera_is_told(stc: Stc, tiny_model: Path, tmp_path: Path) -> None:
    moving, document = tmp_path / "moving.mp4", tmp_path / "numbers.json"
    draw = np.random.default_rng(5)
    with av.open(str(moving), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(18):
            blocks = draw.integers(0, 256, (4, 4, 3), np.uint8).repeat(16, 0).repeat(16, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(blocks, format="rgb24")))
        container.mux(stream.encode())
    told = "moving camera: 18 of 18 frames refreshed, little to save here."
    outcome = stc(
        *("stream", moving, "--model", tiny_model),
        *("--json", document, "--report", tmp_path / "report"),
    )
    assert outcome.code == 0
    assert told in outcome.out
    assert told in (tmp_path / "report" / "index.html").read_text()
    settings = json.loads(document.read_text())["config"]["cacher"]
    assert settings["refresh_on_change"] == CacherConfig().refresh_on_change
    plain = stc("stream", moving, "--model", tiny_model, "--refresh-on-change", 1)
    assert "moving camera" not in plain.out


def test_frames_that_make_no_number_are_null_in_json(
    stc: Stc, tiny_model: Path, video: Path, tmp_path: Path
) -> None:
    model = SiglipVisionModel.from_pretrained(tiny_model)
    torch.nn.init.constant_(model.post_layernorm.weight, torch.nan)
    model.save_pretrained(tmp_path / "nan")
    document, report = tmp_path / "numbers.json", tmp_path / "report"
    options = ("--model", tmp_path / "nan", "--json", document, "--report", report)
    options = (*options, "--refresh-on-change", 1)
    outcome = stc("stream", video, *options)
    assert outcome.code == 0
    assert "not a number" in outcome.out
    numbers = json.loads(document.read_text())
    jsonschema.validate(numbers, stream_schema())
    assert numbers["summary"]["cosine"] is None
    assert numbers["fidelity"]["features"] == [None] * 4
    assert None not in numbers["fidelity"]["layers"][1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nothing.mp4",), "there is no file or folder nothing.mp4"),
        ((__file__,), "is not a video that can be read"),
        (("97",), "there is no camera 97"),
        (("rtsp://127.0.0.1:1/x",), "connection refused"),
        (("VIDEO", "--update-ratio", "0"), "'--update-ratio': 0.0 is not in the range 0<x<=1"),
        (("VIDEO", "--update-ratio", "1.5"), "'--update-ratio': 1.5 is not in the range"),
        (("VIDEO", "--update-ratio", "nan"), "'--update-ratio': nan is not a finite number"),
        (("VIDEO", "--refresh-interval", "0"), "'--refresh-interval': 0 is not in the range x>=1"),
        (("VIDEO", "--refresh-on-change", "0"), "'--refresh-on-change': 0.0 is not in the range"),
        (("VIDEO", "--tokens-per-frame", "0"), "'--tokens-per-frame': 0 is not in the range x>=1"),
        (("VIDEO", "--tokens-per-frame", "17"), "--tokens-per-frame must be at most 16"),
        (("VIDEO", "--frames", "0"), "'--frames': 0 is not in the range x>=1"),
        (("VIDEO", "--frames", "some"), "'--frames': 'some' is not a valid integer"),
        (("VIDEO", "--fps", "0"), "'--fps': 0.0 is not in the range x>0"),
        (("VIDEO", "--fps", "nan"), "'--fps': nan is not a finite number"),
        (("VIDEO", "--fps", "inf"), "'--fps': inf is not a finite number"),
        (("VIDEO", "--device", "toaster"), "--device must be auto, cpu, cuda or cuda:N"),
        (("VIDEO", "--device", "cuda:99"), "--device 'cuda:99' is not there"),
        (("VIDEO", "--dtype", "int8"), "'--dtype': 'int8' is not one of"),
        (("VIDEO", "--report", "VIDEO"), "no report can be written to"),
        (("VIDEO", "--report", "VIDEO/deeper"), "no report can be written to"),
        (("VIDEO", "--report", "/proc/report"), "no report can be written to"),
        (("VIDEO", "--json", "FOLDER"), "it is a folder"),
        (("VIDEO", "--json", "FOLDER/nowhere/x.json"), "there is no folder"),
        (("",), "it is empty"),
        (("VIDEO", "--report", ""), "'--report': it is empty"),
        (("VIDEO", "--json", ""), "'--json': it is empty"),
        (("VIDEO", "--json", "VIDEO"), "--json would overwrite the video"),
        (("VIDEO", "--json", "FOLDER/../FOLDER_NAME/grey.mp4"), "--json would overwrite the video"),
        (
            ("VIDEO", "--report", "FOLDER/r", "--json", "FOLDER/r/index.html"),
            "the page of --report",
        ),
        (("VIDEO", "--json", "LONG"), "file name too long"),
        (("LONG",), "is not a path that can be opened"),
        (("VIDEO", "VIDEO"), "unexpected extra argument"),
        (("VIDEO", "--no-such-option"), "No such option"),
    ],
)
def test_bad_input_is_one_line_and_code_two(
    stc: Stc, tiny_model: Path, video: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    real = [
        word.replace("VIDEO", str(video))
        .replace("FOLDER_NAME", tmp_path.name)
        .replace("FOLDER", str(tmp_path))
        .replace("LONG", 5000 * "a")
        for word in arguments
    ]
    before = video.read_bytes()
    outcome = stc("stream", *real, "--model", tiny_model)
    assert outcome.code == 2
    assert words in outcome.err
    assert outcome.err.startswith("stc: ")
    assert outcome.err.count("\n") == 1
    assert len(outcome.err) < 700
    assert "ViT" not in outcome.out
    assert video.read_bytes() == before


@pytest.mark.parametrize("arguments", [("nothing",), ("stream", "-z"), ("--bad",)])
def test_bad_commands_are_one_line(stc: Stc, arguments: tuple[str, ...]) -> None:
    outcome = stc(*arguments)
    assert (outcome.code, outcome.err.count("\n"), outcome.out) == (2, 1, "")


def test_a_file_name_with_a_line_break_stays_one_line(stc: Stc, tmp_path: Path) -> None:
    outcome = stc("stream", tmp_path / "two\nlines.mp4")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)


def test_an_unknown_model_and_a_text_model(stc: Stc, video: Path, tmp_path: Path) -> None:
    outcome = stc("stream", video, "--model", tmp_path)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "there is no model" in outcome.err
    (tmp_path / "config.json").write_text('{"model_type": "siglip_text_model"}')
    outcome = stc("stream", video, "--model", tmp_path)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "has no vision tower" in outcome.err


def test_a_video_without_one_good_frame(
    stc: Stc, tiny_model: Path, sample: Path, tmp_path: Path
) -> None:
    header = tmp_path / "header.mp4"
    header.write_bytes(sample.read_bytes()[:3000])
    outcome = stc("stream", header, "--model", tiny_model)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "header.mp4: not one frame could be decoded" in outcome.err


def test_no_room_for_the_report_is_said_before_the_run(
    stc: Stc, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 2**20))
    outcome = stc("stream", video, "--report", tmp_path / "report")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "only 1.0 MiB are free" in outcome.err


def test_a_disk_that_fills_up_during_the_run(tiny_model: Path, video: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    report.mkdir()
    (report / "index.html").write_text("the page before")
    limit = 20_000
    done = subprocess.run(
        [sys.executable, "-m", "stc_stream.cli", "stream", str(video), "--model", str(tiny_model),
         "--report", str(report)],
        capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "the report could not be written to" in done.stderr
    assert "ViT dense" in done.stdout
    assert (report / "index.html").read_text() == "the page before"
    assert len(list(report.iterdir())) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_json_onto_a_full_disk(stc: Stc, tiny_model: Path, video: Path) -> None:
    outcome = stc("stream", video, "--model", tiny_model, "--json", "/dev/full")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "no space left" in outcome.err


def test_missing_packages_are_named(stc: Stc, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name in ("av", "PIL") else found(name, *rest),
    )
    outcome = stc("stream", video)
    assert outcome.code == 2
    assert outcome.err == (
        "stc: stc stream needs packages that are not installed (av, pillow): "
        "pip install 'stc-kernels[video]', or, in a clone of it, pip install '.[video]'\n"
    )


def test_not_enough_memory_is_one_line(
    stc: Stc, tiny_model: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: StreamComparison, frame: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")

    monkeypatch.setattr(StreamComparison, "step", step)
    outcome = stc("stream", video, "--model", tiny_model)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "not enough memory" in outcome.err


def test_ctrl_c_before_the_first_frame_is_one_line(
    stc: Stc, tiny_model: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: StreamComparison, frame: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StreamComparison, "step", step)
    outcome = stc("stream", video, "--model", tiny_model)
    assert outcome.code == 2
    assert outcome.err.strip() == "stc: stopped before there was anything to report"


def test_a_reader_that_has_gone_is_no_traceback() -> None:
    command = f"{sys.executable} -m stc_stream.cli stream --help | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["stream", "info", "--version"]),
        (("--help",), ["stream", "info", "--version"]),
        (("stream", "--help"), ["VIDEO", "--model", "--update-ratio", "--refresh-interval",
         "--tokens-per-frame", "--frames", "--fps", "--device", "--dtype", "--report", "--json"]),
        (("info", "--help"), ["Show versions"]),
    ],
)  # fmt: skip
def test_help(stc: Stc, arguments: tuple[str, ...], words: list[str]) -> None:
    outcome = stc(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    for word in words:
        assert word in outcome.out


@pytest.mark.parametrize(("option", "value"), [("--update-ratio", "nan"), ("--fps", "nan")])
def test_nan_is_refused_before_anything_is_loaded(option: str, value: str) -> None:
    code = (
        f"import sys; from stc_stream.cli import main; main(['stream', '{option}', '{value}']);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    ("model", "words"), [("", "'--model': it is empty"), ("VIDEO", "is a file, but a model is a")]
)
def test_a_model_that_is_no_folder(stc: Stc, video: Path, model: str, words: str) -> None:
    outcome = stc("stream", video, "--model", model.replace("VIDEO", str(video)))
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert words in outcome.err


def test_names_are_printed_as_they_are(
    stc: Stc, tiny_model: Path, video: Path, tmp_path: Path
) -> None:
    odd = video.rename(tmp_path / "[bold] [red :smile:.mp4")
    model = shutil.copytree(tiny_model, tmp_path / "m[" / "b]")
    report, document = tmp_path / "x[" / "b]y", tmp_path / ":cat:.json"
    outcome = stc("stream", odd, "--model", model, "--report", report, "--json", document)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"{odd.name} through {model}," in outcome.out
    assert f"{odd.name}: 8 frames" in outcome.out
    assert f"JSON: {document}\nreport: {report / 'index.html'}\n" in outcome.out


def test_an_image_is_not_overwritten_by_the_json(stc: Stc, tmp_path: Path) -> None:
    image = tmp_path / "0.png"
    Image.new("RGB", (20, 20)).save(image)
    outcome = stc("stream", tmp_path, "--json", image)
    assert outcome.code == 2
    assert "--json would overwrite the video" in outcome.err


def test_a_link_to_the_video_is_not_overwritten(stc: Stc, video: Path, tmp_path: Path) -> None:
    (tmp_path / "hard.json").hardlink_to(video)
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").symlink_to(video)
    outcome = stc("stream", video, "--json", tmp_path / "hard.json")
    assert "--json would overwrite the video" in outcome.err
    outcome = stc("stream", video, "--report", tmp_path / "page")
    assert "--report would overwrite the video" in outcome.err


def test_names_that_are_no_text(tiny_model: Path, video: Path, tmp_path: Path) -> None:
    """Bytes that are no UTF-8 in the video's name, and an output that takes ASCII only."""
    for encoding, name in (("utf-8", b"caf\xe9.mp4"), ("ascii", "café ☃.mp4".encode())):
        odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        shutil.copy(video, odd)
        document, report = tmp_path / f"{encoding}.json", tmp_path / encoding
        done = subprocess.run(
            [sys.executable, "-m", "stc_stream.cli", "stream", str(odd), "--model",
             str(tiny_model), "--json", str(document), "--report", str(report)],
            capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": encoding},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"")
        jsonschema.validate(json.loads(document.read_text(encoding="utf-8")), stream_schema())
        assert "STC report: caf" in (report / "index.html").read_text(encoding="utf-8")


def test_the_json_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "numbers.json"
    document.write_text("before")
    write_whole(document, "after")
    assert document.read_text() == "after"

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(document, "never")
    assert document.read_text() == "after"
    assert list(tmp_path.iterdir()) == [document]


def test_a_reader_that_goes_early_still_gets_its_files(
    tiny_model: Path, video: Path, tmp_path: Path
) -> None:
    document = tmp_path / "numbers.json"
    command = [sys.executable, "-m", "stc_stream.cli", "stream", str(video), "--model",
               str(tiny_model), "--json", str(document)]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        # Gone before the first line, so that no timing decides whether a write fails.
        process.stdout.close()
        err, code = process.stderr.read(), process.wait(60)
    assert (code, err) == (0, b"")
    assert len(json.loads(document.read_text())["frames"]) == 8


def test_version(stc: Stc) -> None:
    assert stc("--version") == Outcome(0, f"stc {stc_kernels.__version__}\n", "")


def test_info_tells_what_each_op_runs_on(stc: Stc) -> None:
    outcome = stc("info")
    assert (outcome.code, outcome.err) == (0, "")
    for word in ("torch", "transformers", "triton", "compiled code", "GPUs", "CPU features"):
        assert word in outcome.out
    for op in ("select_dynamic", "prune_tokens", "merge_tokens", "quiet_channels"):
        assert op in outcome.out
    assert stc_kernels.implementation("select_dynamic") in outcome.out


def test_info_says_when_nothing_was_compiled(stc: Stc, monkeypatch: pytest.MonkeyPatch) -> None:
    built = {"extension": False, "torch": "", "compiler": "", "isas": ()}
    monkeypatch.setattr(stc_kernels, "build_info", lambda: built)
    assert "no: the ops run their naive definitions" in stc("info").out


def test_nothing_heavy_is_imported_for_help_or_a_missing_file() -> None:
    code = (
        "import sys; from stc_stream.cli import main; main(['stream', '--help']);"
        "main(['--version']);"
        "main(['stream', 'nothing.mp4']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_every_field_of_the_json_is_documented() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "json.md").read_text(encoding="utf-8")

    def names(part: object) -> set[str]:
        if not isinstance(part, dict):
            return set()
        nested = (names(value) for value in part.values())
        return set(part.get("properties", {})).union(*nested)

    fields = names(stream_schema())
    assert "cosine_lowest_token" in fields
    assert [field for field in sorted(fields) if f"`{field}`" not in page] == []
