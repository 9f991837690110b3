"""A session's logits and answers are the stock model's, where both see the same tokens."""

from __future__ import annotations

import pytest
import torch
from session.conftest import QUESTION, only_llava, patched

from stc_stream import (
    CacherConfig,
    PrunerConfig,
    PruningStrategy,
    RecentMemory,
    RetrievalMemory,
    SessionProcessor,
    StreamingSession,
    WindowMemory,
)

EVERYTHING = {
    "cacher": CacherConfig.paper(update_ratio=1.0),
    "pruner": PrunerConfig.paper(keep_ratio=1.0),
}


@pytest.mark.parametrize("positions", ["kept", "contiguous"])
@pytest.mark.parametrize("settings", [{}, EVERYTHING], ids=["dense", "everything kept"])
@pytest.mark.parametrize("count", [1, 5])
def test_logits_are_the_stock_models(case, frames, positions, settings, count):
    with StreamingSession(case.model, case.processor, positions=positions, **settings) as session:
        session.feed(frames[:count])
        found = session.logits(QUESTION)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, case.logits(frames[:count]), atol=1e-4, rtol=0)


def test_another_question_is_behind_the_same_frames(case, frames):
    with StreamingSession(case.model, case.processor) as session:
        session.feed(frames[:3])
        for question in ("Why?", "And who is it that sits there?"):
            expected = case.logits(frames[:3], question)
            torch.testing.assert_close(session.logits(question), expected, atol=1e-4, rtol=0)


def test_a_question_between_frames(case, frames):
    with StreamingSession(case.model, case.processor) as session:
        for count in range(1, 5):
            session.feed(frames[count - 1 : count])
            found = session.logits(QUESTION)
            torch.testing.assert_close(found, case.logits(frames[:count]), atol=1e-4, rtol=0)


def test_a_question_before_any_frame_is_text_alone(case):
    ids = torch.tensor([case.processor.prompt(QUESTION, video=False).before])
    assert case.video_token not in ids
    with torch.no_grad():
        expected = case.model(input_ids=ids).logits[0, -1]
    with StreamingSession(case.model, case.processor) as session:
        torch.testing.assert_close(session.logits(QUESTION), expected, atol=1e-5, rtol=0)


def test_an_answer_is_what_generate_gives(case, frames):
    inputs = case.inputs(frames[:4])
    tokens = case.model.generate(**inputs, do_sample=False, max_new_tokens=12)
    new = tokens[0, inputs["input_ids"].shape[1] :]
    expected = case.processor.tokenizer.decode(new, skip_special_tokens=True)
    chosen = []

    def choose(logits):
        chosen.append(int(logits.argmax()))
        return chosen[-1]

    with StreamingSession(case.model, case.processor) as session:
        session.feed(frames[:4])
        assert session.ask(QUESTION, max_new_tokens=12) == expected
        pieces = session.ask(QUESTION, max_new_tokens=12, stream=True, choose=choose)
        assert "".join(pieces) == expected
    assert chosen == new.tolist()


def test_an_answer_ends_at_the_stop_token(case, frames):
    stop = case.processor.tokenizer.eos_token_id
    letter = case.processor.tokenizer("a")["input_ids"][0]
    tokens = iter([letter, letter, stop])
    with StreamingSession(case.model, case.processor) as session:
        session.feed(frames[:1])
        assert session.ask(QUESTION, choose=lambda logits: next(tokens)) == "aa"
    assert not list(tokens)


def test_characters_of_several_tokens_come_whole(case):
    tokens = iter(case.processor.tokenizer("aö€b")["input_ids"])
    with StreamingSession(case.model, case.processor) as session:
        pieces = session.ask("?", 7, stream=True, choose=lambda logits: next(tokens))
        assert list(pieces) == ["a", "ö", "€", "b"]


def test_scores_are_log_probabilities_of_the_stock_model(case, frames):
    answers = ["yes", "no", "A", "a long answer"]
    inputs = case.inputs(frames[:3])
    expected = []
    for answer in answers:
        ids = torch.tensor([case.processor.tokenizer(answer)["input_ids"]])
        logits = case.run(case.with_ids(inputs, torch.cat([inputs["input_ids"], ids], dim=1)))
        ours = logits[-ids.shape[1] - 1 : -1].log_softmax(-1)
        expected.append(ours[range(ids.shape[1]), ids[0]].sum())
    with StreamingSession(case.model, case.processor) as session:
        session.feed(frames[:3])
        before = session.logits(QUESTION)
        found = session.score(QUESTION, answers)
        torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=0)
        assert torch.equal(session.logits(QUESTION), before)


def test_kept_positions_equal_the_whole_run_with_dropped_tokens_masked(case, frames):
    with StreamingSession(case.model, case.processor, pruner=PrunerConfig.paper(5)) as session:
        fed = session.feed(frames[:4])
        found = session.logits(QUESTION)
    whole, places = case.embedded(frames[:4]), case.places(frames[:4])
    seen = torch.ones(len(whole), dtype=torch.bool)
    seen[places] = False
    for own, index in zip(places, fed.index, strict=True):
        seen[own[index]] = True
    assert int(seen.sum()) == len(whole) - (case.tokens(frames) - 5) * len(places)
    mask = torch.ones(len(whole), len(whole), dtype=torch.bool).tril() & seen
    # A dropped token sees itself, so that its row is not empty; nobody sees it.
    mask |= torch.eye(len(whole), dtype=torch.bool)
    added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    expected = case.run_embedded(frames[:4], mask=added)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_contiguous_positions_equal_a_run_of_the_kept_tokens_alone(case, frames):
    settings = {"pruner": PrunerConfig.paper(5), "positions": "contiguous"}
    with StreamingSession(case.model, case.processor, **settings) as session:
        fed = session.feed(frames[:4])
        found = session.logits(QUESTION)
    left = torch.ones(len(case.embedded(frames[:4])), dtype=torch.bool)
    places = case.places(frames[:4])
    left[places] = False
    for own, index in zip(places, fed.index, strict=True):
        left[own[index]] = True
    # On three axes a token has its time, row and column all the same.
    expected = case.run_embedded(frames[:4], rows=left.nonzero()[:, 0])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_pruner_is_the_one_of_its_own_page(case, frames):
    from stc_stream import TokenPruner

    count, span = case.patches(frames), case.tokens(frames)
    with torch.no_grad():
        tokens = case.features(frames)[: count * span]
    expected = TokenPruner(PrunerConfig.paper(6))(tokens.view(count, span, -1)).index
    with StreamingSession(case.model, case.processor, pruner=PrunerConfig.paper(6)) as session:
        fed = session.feed(frames)
    assert torch.equal(torch.stack(fed.index), expected)
    assert (fed.frames, fed.tokens, fed.kept) == (8, count * span, count * 6)
    assert list(fed.seconds) == ["preprocess", "tower", "prune", "prefill"]


def test_frames_of_several_sizes_and_kinds(case, frames):
    small = frames[:, :20, :20]
    with StreamingSession(case.model, case.processor) as session:
        session.feed(frames[:2].numpy())
        session.feed(small[2:4].flip(2))
        found = session.logits(QUESTION)
    pixels, size = case.processor.pixels, case.processor.pixels.size_of(40, 56)
    second = case.videos(frames[2:4])
    later = pixels(small[2:4].flip(2), size)
    second["pixel_values_videos"] = later[None] if case.deep == 1 else patched(later)[0]
    axis = 1 if case.deep == 1 else 0
    both = [case.videos(frames[:2]), second]
    whole = torch.cat([video["pixel_values_videos"] for video in both], dim=axis)
    inputs = {**case.inputs(frames[:4]), "pixel_values_videos": whole}
    expected = case.run(inputs)[-1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_long_chunks_are_taken_in_parts(case, generator):
    frames = torch.randint(0, 256, (37, 32, 32, 3), generator=generator, dtype=torch.uint8)
    with StreamingSession(case.model, case.processor) as session:
        session.feed(frames)
        found = session.logits(QUESTION)
    torch.testing.assert_close(found, case.logits(frames), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(case, frames, dtype):
    case.model.to(dtype)
    with StreamingSession(case.model, case.processor) as session:
        session.feed(frames[:3])
        found = session.logits(QUESTION)
    inputs = case.inputs(frames[:3])
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"].to(dtype)
    expected = case.run(inputs)[-1]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    "memory", [RetrievalMemory(64, blocks=8), WindowMemory(0, 32), RecentMemory(2)]
)
@only_llava
def test_a_template_that_begins_with_the_video(case, frames, memory):
    """There is no text before the frames, and frames are numbered and forgotten as ever."""
    question = "{{ messages[0]['content'][-1]['text'] }}:"
    template = "{% if messages[0]['content'] | length > 1 %}<video>{% endif %}" + question
    processor = SessionProcessor(case.processor.tokenizer, template, case.processor.pixels)
    with StreamingSession(case.model, processor, memory=memory) as session:
        session.feed(frames)
        session.logits(QUESTION)
        retrieves = isinstance(memory, RetrievalMemory)
        assert session.retrieved == ((*range(8),),) * (2 if retrieves else 0)
        assert session.stats.frames_forgotten == (0 if retrieves else 6)


def test_a_rule_of_ones_own_may_keep_nothing_of_a_frame(case, frames):
    class Every(PruningStrategy):
        """Keeps the whole first frame of a stream, then nothing."""

        def select(self, tokens, past, budget):
            kept = [frame[: 0 if past else 16] for frame in tokens]
            return kept, [torch.arange(len(each)) for each in kept], True

    pruner = PrunerConfig(strategy=Every(), keep_ratio=1.0)
    with StreamingSession(case.model, case.processor, pruner=pruner) as session:
        session.feed(frames[: case.deep])
        fed = session.feed(frames[case.deep : 3 * case.deep])
        found = session.logits(QUESTION)
    assert fed.kept == 0
    with StreamingSession(
        case.model, case.processor, pruner=pruner, positions="contiguous"
    ) as session:
        session.feed(frames[: 3 * case.deep])
        expected = case.logits(frames[: case.deep])
        # Where text stands around frames, it stays.
        if case.block(frames) == case.tokens(frames):
            torch.testing.assert_close(session.logits(QUESTION), expected, atol=1e-4, rtol=0)
    # Positions in time alone may be spent without any trace: text goes on behind rows and columns.
    if case.deep == 1:
        assert not torch.allclose(found, expected, atol=1e-4)


def test_frames_fed_in_inference_mode_and_outside_it(case, frames):
    with StreamingSession(case.model, case.processor, **EVERYTHING) as session:
        with torch.inference_mode():
            session.feed(frames[:2])
            pieces = session.ask(QUESTION, 4, stream=True, choose=lambda logits: 5)
            next(pieces)
        session.feed(frames[2:4])
        next(pieces)
        with torch.inference_mode():
            session.feed(frames[4:6])
        found = session.logits(QUESTION)
    torch.testing.assert_close(found, case.logits(frames[:6]), atol=1e-4, rtol=0)


@only_llava
def test_reset_forgets_what_a_pruner_without_reset_has_seen(case, frames):
    class Fewer:
        """Keeps a token less of each frame than of the one before."""

        def __init__(self) -> None:
            self.kept = 16

        def __call__(self, tokens):
            self.kept -= 1
            index = torch.arange(self.kept)[None]
            return type("Pruned", (), {"tokens": tokens[:, : self.kept], "index": index})

    pruner = Fewer()
    with StreamingSession(case.model, case.processor, pruner=pruner) as session:
        assert session.feed(frames[:3]).kept == 15 + 14 + 13
        session.reset()
        assert session.feed(frames[:2]).kept == 15 + 14
        other = session.fork()
        assert other.feed(frames[:1]).kept == session.feed(frames[:1]).kept == 13
        other.reset()
        assert other.feed(frames[:1]).kept == 15
        other.close()
    assert pruner.kept == 16
