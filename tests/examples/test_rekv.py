"""ReKV, on its architecture built small: examples/rekv.py, held to the stock model."""

from __future__ import annotations

import json

import torch
from session.conftest import Case

from examples import rekv
from stc_stream import CacherConfig, RetrievalMemory


def test_rekv_that_keeps_everything_is_the_stock_model(monkeypatch, generator):
    """Everything recomputed, all tokens kept, a window and blocks for all frames."""
    monkeypatch.setattr(rekv, "CACHER", CacherConfig.paper(update_ratio=1.0))
    monkeypatch.setattr(rekv, "SMALL", (16, RetrievalMemory(window_tokens=2000, blocks=20)))
    frames = torch.randint(0, 256, (9, 40, 56, 3), generator=generator, dtype=torch.uint8)
    with rekv.open_session(None) as session:
        for frame in frames.split(1):
            session.feed(frame)
        found = session.logits("Who?")
    from stc_stream.session.untrained import build_llava_onevision

    expected = Case(*build_llava_onevision()).logits(frames, "Who?")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_rekv_sends_on_a_part_and_brings_back_some_frames(generator):
    frames = torch.randint(0, 256, (24, 32, 32, 3), generator=generator, dtype=torch.uint8)
    with rekv.open_session(None) as session:
        fed = [session.feed(frame) for frame in frames.split(1)]
        assert [(each.tokens, each.kept) for each in fed] == [(16, 5)] * 24
        session.ask("Who?", max_new_tokens=2)
        assert len(session.retrieved) == 2
        for found in session.retrieved:
            assert len(found) == 8
            assert sorted(set(found)) == list(found)
            assert set(found) <= set(range(24))
        # Keys and values of two layers, two heads of 16 channels, float32.
        assert session.stats.bytes_host >= 24 * 5 * 2 * 2 * 2 * 16 * 4


def test_a_checkpoint_is_run_as_it_was_published(tmp_path, generator):
    """64 tokens of each frame and 64 blocks, of a folder as the hub has it: 64 tokens a frame."""
    from stc_stream.session.untrained import LlavaSizes, build_llava_onevision

    model, processor = build_llava_onevision(LlavaSizes(image=64))
    model.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(processor.template)
    colours = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"size": {"height": 64, "width": 64}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**colours, **size}))
    frames = torch.randint(0, 256, (4, 64, 64, 3), generator=generator, dtype=torch.uint8)
    with rekv.open_session(str(tmp_path)) as session:
        fed = session.feed(frames)
        found = session.logits("Who?")
        assert (fed.kept, session.retrieved) == (4 * 64, ((0, 1, 2, 3),) * 2)
    with rekv.StreamingSession(model, processor, cacher=rekv.CACHER) as session:
        session.feed(frames)
        torch.testing.assert_close(session.logits("Who?"), found, atol=1e-4, rtol=0)
