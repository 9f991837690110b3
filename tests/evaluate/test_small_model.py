"""The small video LLM that ships with the package."""

from __future__ import annotations

import pytest
import torch
from transformers import LlavaOnevisionForConditionalGeneration

from stc_stream import SessionProcessor, StreamingSession
from stc_stream.evaluate.scenes import make_clip
from stc_stream.evaluate.small_model import load_small_tower, model_folder


def test_a_session_takes_it():
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(
        model_folder(), dtype=torch.float32
    )
    processor = SessionProcessor.from_pretrained(str(model_folder()))
    tower = load_small_tower(device="cpu")
    for ours, theirs in zip(
        tower.module.parameters(), model.model.vision_tower.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
    pytest.importorskip("skimage", reason="photographs come with scikit-image")
    right = asked = 0
    for number in range(10):
        clip = make_clip("validation", number)
        with StreamingSession(model, processor) as session:
            for frame, picture in enumerate(clip.frames):
                session.feed(picture[None])
                for question in (each for each in clip.questions if each.frame == frame):
                    right += session.ask(question.text, 1) == question.answer
                    asked += 1
    # A blind model has a quarter; the card's figure is of many more questions.
    assert right / asked > 0.8
