"""The small video LLM's folder, as it is written after training: a session reads it as it is."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("skimage", reason="photographs come with scikit-image")

from benchmarks.accuracy import export
from benchmarks.accuracy.model import TOKENS, build_model, vocabulary
from stc_stream import PrunerConfig, SessionProcessor, StreamingSession
from stc_stream.evaluate.scenes import make_clip, question_texts


def test_a_session_reads_the_folder_of_the_small_video_llm(tmp_path, seed):
    from transformers import LlavaOnevisionForConditionalGeneration

    export.write_model(build_model(seed), tmp_path)
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    processor = SessionProcessor.from_pretrained(str(tmp_path))
    frames = torch.from_numpy(make_clip("train", 0, 4).frames)
    question = question_texts()[3]
    tokens = vocabulary()
    ids = [tokens.index("<video>")] * (4 * TOKENS + 1) + [tokens.index(question)]
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor([ids]), pixel_values_videos=processor.pixels(frames)[None]
        ).logits[0, -1]
    with StreamingSession(model, processor, pruner=PrunerConfig.paper(TOKENS)) as session:
        session.feed(frames[:1])
        session.feed(frames[1:])
        torch.testing.assert_close(session.logits(question), expected, atol=1e-4, rtol=0)
        best = tokens[int(expected.argmax())]
        scores = session.score(question, tokens[5:15])
        assert session.ask(question, 1) in (best, "")
        expected_scores = expected.log_softmax(-1)[5:15]
        torch.testing.assert_close(scores, expected_scores, atol=1e-4, rtol=0)
