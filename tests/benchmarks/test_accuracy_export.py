"""The trained model as a folder: what transformers reads there, and the card."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from benchmarks.accuracy import export, measure
from benchmarks.accuracy.loop import train
from benchmarks.accuracy.model import TOKENS, build_model, llm_weights, tower_weights, vocabulary
from benchmarks.accuracy.tower import build_heads, pixels
from stc_stream.evaluate.scenes import make_clip, question_texts

pytest.importorskip("skimage", reason="photographs come with scikit-image")

TIMM = Path(sys.prefix, "timm")

PROCESS = """
import sys, numpy, torch
sys.path.append(sys.argv[2])
# torchvision's own operators don't load beside a CPU torch; its resizing doesn't need them.
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1])
messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": sys.argv[4]}]}]
text = processor.apply_chat_template(messages)
frames = numpy.load(sys.argv[3])
torch.save(dict(processor(text=text, videos=[frames], return_tensors="pt")), sys.argv[3] + ".pt")
"""


@pytest.fixture
def folder(tmp_path: Path, seed: int) -> Path:
    export.write_model(build_model(seed), tmp_path / "model")
    return tmp_path / "model"


def test_transformers_reads_the_folder(folder: Path, seed: int) -> None:
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    expected = build_model(seed).state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected[name].half().float()), name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = question_texts()[3]
    content = [{"type": "video"}, {"type": "text", "text": question}]
    text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    ids = tokenizer(text).input_ids
    assert [vocabulary()[token] for token in ids] == ["<video>", question]
    size = sum(file.stat().st_size for file in export.files(folder))
    assert size < 7.5e6, "two of them must fit into 15 MB"


def test_it_generates(folder: Path) -> None:
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    frames = make_clip("train", 0, 4).frames
    ids = [vocabulary().index("<video>")] * (len(frames) * TOKENS + 1) + [10]
    inputs = {"input_ids": torch.tensor([ids]), "pixel_values_videos": pixels(frames)[None]}
    answer = model.generate(**inputs, attention_mask=torch.ones(1, len(ids)), do_sample=False)
    best = int(model(**inputs).logits[0, -1].argmax())
    assert answer[0, len(ids)] == best
    assert len(ids) < answer.shape[1] <= len(ids) + 2


@pytest.mark.skipif(not (TIMM / "torchvision").exists(), reason="video processors need torchvision")
def test_the_processor_gives_what_the_model_was_trained_on(folder: Path, tmp_path: Path) -> None:
    frames = make_clip("train", 1, 5).frames
    np.save(tmp_path / "frames.npy", frames)
    question = question_texts()[-1]
    arguments = [str(folder), str(TIMM), str(tmp_path / "frames.npy"), question]
    subprocess.run([sys.executable, "-c", PROCESS, *arguments], check=True)
    found = torch.load(tmp_path / "frames.npy.pt")
    torch.testing.assert_close(found["pixel_values_videos"][0], pixels(frames))
    video = vocabulary().index("<video>")
    expected = [video] * (5 * TOKENS + 1) + [vocabulary().index(question)]
    assert found["input_ids"][0].tolist() == expected


def test_the_command_writes_both_models_and_the_card(tmp_path: Path, seed: int, monkeypatch):
    state, to = tmp_path / "state", tmp_path / "model"
    state.mkdir()
    (state / "settings.json").write_text(json.dumps({"seed": seed, "clips": 7}))
    model, heads = build_model(seed), build_heads(seed)
    stages = {
        "tower": [*tower_weights(model), *heads.parameters()],
        "dense": llm_weights(model),
        "gaps": llm_weights(model),
    }
    for name, weights in stages.items():
        train(name, weights, lambda step, w=weights: w[0].square().sum(), 2, 1e-3,
              state / f"{name}.pt")  # fmt: skip
    clips = [make_clip("test", number, 5) for number in range(3)]
    right = [[question.task != "sign" for question in clip.questions] for clip in clips]
    files = []
    for name in ("dense", "gaps"):
        found = {
            "model": name,
            "split": "test",
            "clips": 3,
            "stages": {each: {"steps": 2, "minutes": 41} for each in ("tower", name)},
            "closeness": {"Cacher, plain": {"mean": 0.98765, "worst frame": 0.5}},
            "rows": measure.count(clips, {"dense": right}),
        }
        files.append(tmp_path / f"{name}.json")
        measure.write_json(found, files[-1])
    command = ["export", *map(str, files), "--state", str(state), "--to", str(to)]
    monkeypatch.setattr(sys, "argv", [*command, "--note", "Said by hand."])
    assert export.main() == 0
    for name, place in (("dense", to), ("gaps", to / "gaps")):
        expected, _ = measure.load(state, name)
        read = LlavaOnevisionForConditionalGeneration.from_pretrained(place, dtype=torch.float32)
        for key, weight in read.state_dict().items():
            assert torch.equal(weight, expected.state_dict()[key].half().float()), key
    text = (to / "README.md").read_text()
    for words in (f"seed {seed}", "7 clips", "| LLM, gaps | 2 | 41 |", "0.9877, 0.5000",
                  "Said by hand.", "rocket.jpg"):  # fmt: skip
        assert words in text
    if any(question.task == "sign" for clip in clips for question in clip.questions):
        assert "Below 80% and no yardstick: sign (0.0" in text
    alone = tmp_path / "alone"
    command = ["export", str(files[0]), "--state", str(state), "--to", str(alone)]
    monkeypatch.setattr(sys, "argv", command)
    assert export.main() == 0
    assert not (alone / "gaps").exists() and "gaps" not in (alone / "README.md").read_text()
    monkeypatch.setattr(sys, "argv", ["export", *map(str, files[::-1]), "--state", str(state)])
    assert export.main() == 1
