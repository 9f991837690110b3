"""The examples run as they stand, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def run(name: str, *arguments: object, cwd: Path) -> list[str]:
    """Run an example, which must succeed, and return the lines it printed."""
    paths = [str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_example_is_tested():
    names = {path.name for path in (ROOT / "examples").glob("*.py")}
    # make_sample_clip.py wrote the clip that is streamed here; it is not run again for every test.
    assert names == {
        "livecc.py",
        "make_sample_clip.py",
        "rekv.py",
        "stream_features.py",
        "use_one_op.py",
    }


def test_use_one_op(tmp_path):
    *picture, summary = run("use_one_op.py", cwd=tmp_path)
    expected = [["."] * 12 for _ in range(12)]
    for row in range(3):
        for column in range(3):
            expected[2 + row][2 + column] = expected[6 + row][5 + column] = "#"
    assert picture == ["".join(row) for row in expected]
    assert summary == "18 of 144 patches chosen; the first: [26, 27, 28, 38, 39, 40]"


def test_stream_features_of_the_sample_clip(tmp_path):
    pytest.importorskip("av", reason="the extra `video` is not installed")
    *frames, summary = run("stream_features.py", "--frames", 6, cwd=tmp_path)
    assert [line.split()[2] for line in frames] == ["refresh", *["selective"] * 3] + [
        "refresh",
        "selective",
    ]
    assert all(line.endswith("kept 49") for line in frames)
    # Two whole frames of 196 tokens, four of 49; 4 layers × 3 × 196 × 192, and 3 × 224² pixels.
    assert summary == (
        "6 frames, 2 of them refreshes; 588 tokens recomputed, 588 reused; "
        "2.4 MB of references for 1 stream"
    )


def test_stream_features_of_a_folder_with_a_model_of_ones_own(tmp_path, seed):
    pillow = pytest.importorskip("PIL.Image", reason="the extra `video` is not installed")
    transformers = pytest.importorskip("transformers", reason="the extra `video` is missing")
    noise = np.random.default_rng(seed)
    still = noise.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for number in range(3):
        pillow.fromarray(still).save(tmp_path / f"{number}.png")
    model = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=48,
            patch_size=8,
        )
    )
    model.save_pretrained(tmp_path / "model")
    lines = run("stream_features.py", tmp_path, "--model", tmp_path / "model", cwd=tmp_path)
    assert len(lines) == 4
    # Nothing moves, so what is reused is what would have been computed.
    assert all("of 36 tokens, cosine to dense 1.0000, kept 9" in line for line in lines[:-1])


def test_rekv_on_the_sample_clip(tmp_path):
    pytest.importorskip("av", reason="the extra `video` is not installed")
    frames, *answers = run(
        "rekv.py", "--frames", 12, "--ask", "Why?", "--ask", "Who?", cwd=tmp_path
    )
    assert frames.startswith("12 frames: 192 tokens from the projector, 60 sent on; ")
    assert [line.split()[0] for line in answers] == ["Why?", "Who?"]
    for line in answers:
        looked_at = line.partition("the first layer looked at frames ")[2].split(", ")
        assert len(set(looked_at)) == 8


def test_livecc_on_the_sample_clip(tmp_path):
    pytest.importorskip("av", reason="the extra `video` is not installed")
    *turns, summary = run("livecc.py", "--frames", 11, cwd=tmp_path)
    assert [line.split(" s: ")[0] for line in turns] == ["0.0-3.0", "3.0-4.0", "4.0-5.0", "5.0-6.0"]
    # Six temporal patches; the sample's frames become 24 × 32 pixels, 48 patches.
    assert summary.startswith("6 temporal patches, 2 of them refreshes; ")
