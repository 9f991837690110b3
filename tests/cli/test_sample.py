"""The sample clip: small, playable, and what its script makes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from stc_stream.video import open_video

ROOT = Path(__file__).resolve().parents[2]


def test_the_clip_is_short_small_and_h264(sample: Path) -> None:
    assert sample.stat().st_size < 10**6
    with av.open(str(sample)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    with open_video(sample) as stream:
        assert len(list(stream)) == 40


def test_its_script_makes_it(sample: Path, tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="the script needs scikit-image")
    again = tmp_path / "again.mp4"
    script = ROOT / "examples" / "make_sample_clip.py"
    subprocess.run([sys.executable, str(script), str(again)], check=True, capture_output=True)
    for one, other in zip(open_video(sample), open_video(again), strict=True):
        # Another version of the encoder may choose other bits for the same pictures.
        difference = np.abs(one.image.astype(np.int64) - other.image).mean()
        assert difference < 3
