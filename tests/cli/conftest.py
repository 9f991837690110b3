"""A tiny SigLIP on disk, short videos, and the `stc` command run in this process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from stc_stream.cli import main

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
}


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def told_to_stop(code: str, arguments: list[str], line: str, number: signal.Signals) -> Outcome:
    """Run Python code with arguments in a process that is sent a signal once it prints a line."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in the background deaf to it, and so would be the child.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while line not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        out, err = process.stdout.read(), process.stderr.read()
        return Outcome(process.wait(60), out, err)


@pytest.fixture
def stc(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def run(*arguments: object) -> Outcome:
        code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(3)
    SiglipVisionModel(SiglipVisionConfig(**TINY)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sample() -> Path:
    return Path(str(files("stc_stream").joinpath("data/sample.mp4")))


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Eight frames at 4 a second; frame i is of brightness 30·i."""
    path = tmp_path / "grey.mp4"
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(8):
            image = np.full((48, 64, 3), 30 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA-OneVision of 16 tokens a frame and 1024 of context, as transformers saves one."""
    # Not above: transformers looks for torchvision once, before the path to it is known.
    from stc_stream.session.untrained import TEMPLATE, LlavaSizes, build_llava_onevision

    folder = tmp_path_factory.mktemp("models") / "llm"
    model, processor = build_llava_onevision(LlavaSizes(vocabulary=264, context=1024), seed=7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.mul_(2)
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    pixels = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder
