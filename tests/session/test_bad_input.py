"""Every wrong argument has one clear error, and leaves the session as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from session.conftest import QUESTION, make_case
from session.test_tower import tower_layer
from transformers import Qwen2Config, Qwen2ForCausalLM

from stc_stream import (
    CacherConfig,
    FullMemory,
    MemoryFullError,
    PrunerConfig,
    SessionProcessor,
    StreamingSession,
    TokenPruner,
)


@pytest.fixture
def family() -> str:
    """What is wrong is wrong for every family."""
    return "LLaVA-OneVision"


def zeros(*shape, dtype=torch.uint8):
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("frames", "error", "words"),
    [
        (zeros(1, 8, 8, 3, dtype=torch.float32), TypeError, "must be uint8, but is torch.float32"),
        (torch.full((1, 8, 8, 3), torch.nan), TypeError, "must be uint8, but is torch.float32"),
        (np.full((1, 8, 8, 3), np.nan), TypeError, "must be uint8, but is float64"),
        ([[0]], TypeError, "must be a tensor or an array, but is a list"),
        (None, TypeError, "must be a tensor or an array, but is a NoneType"),
        (zeros(8, 8, 3), ValueError, r"shape \[frames, height, width, 3\].* \[8, 8, 3\]"),
        (zeros(1, 3, 8, 8), ValueError, r"has shape \[1, 3, 8, 8\]"),
        (zeros(0, 8, 8, 3), ValueError, "at least one frame"),
        (zeros(1, 0, 8, 3), ValueError, r"has shape \[1, 0, 8, 3\]"),
        (np.zeros((1, 8, 8, 4), np.uint8), ValueError, r"has shape \[1, 8, 8, 4\]"),
    ],
)
def test_frames(case, frames, error, words):
    with StreamingSession(case.model, case.processor) as session:
        session.feed(zeros(1, 8, 8, 3))
        before, stats = session.logits(QUESTION), session.stats
        with pytest.raises(error, match=words):
            session.feed(frames)
        assert session.stats == stats
        assert torch.equal(session.logits(QUESTION), before)


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ([3.0, 4.0, 5.0], "must be one a frame, 2, but are 3"),
        ([], "must be one a frame, 2, but are 0"),
        ([1.0, 3.0], "must not go back, but 1.0 s follows 2.5 s"),
        ([4.0, 3.5], "must not go back, but 3.5 s follows 4.0 s"),
        ([3.0, float("nan")], "must be finite, but one is nan"),
        ([3.0, float("inf")], "must be finite, but one is inf"),
    ],
)
def test_timestamps(case, times, words):
    with StreamingSession(case.model, case.processor) as session:
        session.feed(zeros(1, 8, 8, 3), timestamps=np.array([2.5]))
        with pytest.raises(ValueError, match=words):
            session.feed(zeros(2, 8, 8, 3), timestamps=times)
        assert session.stats.frames == 1
        session.feed(zeros(2, 8, 8, 3), timestamps=(time for time in (2.5, 2.5)))
        session.reset()
        session.feed(zeros(1, 8, 8, 3), timestamps=[0.0])


@pytest.mark.parametrize("times", [0.5, "12", ["a", "b"], [None, 1.0], np.zeros((2, 2))])
def test_timestamps_that_are_no_numbers(case, times):
    with StreamingSession(case.model, case.processor) as session:
        with pytest.raises(TypeError, match="timestamps must be seconds, one number a frame, but"):
            session.feed(zeros(2, 8, 8, 3), timestamps=times)
        assert session.stats.frames == 0


@pytest.mark.parametrize("method", ["ask", "logits", "score"])
@pytest.mark.parametrize("question", ["", " \n\t"])
def test_empty_questions(case, method, question):
    more = [["a"]] if method == "score" else []
    with StreamingSession(case.model, case.processor) as session:
        with pytest.raises(ValueError, match="question must not be empty"):
            getattr(session, method)(question, *more)
        with pytest.raises(TypeError, match="question must be a str, but is a NoneType"):
            getattr(session, method)(None, *more)
        with pytest.raises(ValueError, match="question must not hold <video>"):
            getattr(session, method)("What is <video>?", *more)
        with pytest.raises(ValueError, match="whole characters, but has .* in place 4, a half"):
            getattr(session, method)("What\udc80?", *more)


def test_a_streaming_answer_says_at_once_what_is_wrong(case):
    session = StreamingSession(case.model, case.processor)
    with pytest.raises(ValueError, match="question must not be empty"):
        session.ask("", stream=True)


@pytest.mark.parametrize(("count", "error"), [(0, ValueError), (True, TypeError), (2.0, TypeError)])
def test_max_new_tokens(case, count, error):
    session = StreamingSession(case.model, case.processor)
    with pytest.raises(error, match="max_new_tokens must be"):
        session.ask(QUESTION, count)


@pytest.mark.parametrize("token", [-1, 300, 99999, None, 5.5, float("nan"), "a"])
def test_a_choice_that_is_no_token(case, token):
    with StreamingSession(case.model, case.processor) as session:
        before = session.logits(QUESTION)
        with pytest.raises(ValueError, match=rf"choose must return a token, 0\.\.299, .*{token}"):
            session.ask(QUESTION, choose=lambda logits: token)
        with pytest.raises(TypeError, match="choose must be a function .* but is 5"):
            session.ask(QUESTION, stream=True, choose=5)
        assert torch.equal(session.logits(QUESTION), before)


@pytest.mark.parametrize(
    "answers", [[], "yes", ["yes", ""], ["yes", 3], None, 3, np.array(["yes", ""])]
)
def test_answers_to_score(case, answers):
    session = StreamingSession(case.model, case.processor)
    with pytest.raises((ValueError, TypeError), match="answers must"):
        session.score(QUESTION, answers)


def test_a_closed_session(case, frames):
    session = StreamingSession(case.model, case.processor)
    session.feed(frames[:2])
    session.close()
    session.close()
    assert (session.stats.frames, session.stats.tokens_held) == (2, 0)
    assert "closed" in repr(session)
    for use in (
        lambda: session.feed(frames),
        lambda: session.ask(QUESTION),
        lambda: session.logits(QUESTION),
        lambda: session.score(QUESTION, ["a"]),
        session.fork,
        session.reset,
    ):
        with pytest.raises(RuntimeError, match="the session is closed"):
            use()


def test_a_text_model(case):
    text = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, **HEADS)
    )
    words = "video LLM of transformers.*LLaVA-OneVision, .*; but is a Qwen2ForCausalLM"
    with pytest.raises(TypeError, match=words):
        StreamingSession(text, case.processor)
    with pytest.raises(TypeError, match="but is a LlavaOnevisionModel"):
        StreamingSession(case.model.model, case.processor)
    with pytest.raises(TypeError, match="but is a str"):
        StreamingSession("llava", case.processor)


HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}


def test_a_tower_that_cannot_be_read(case, frames):
    tower_layer(case.model, 1).self_attn.k_proj = torch.nn.Identity()
    with pytest.raises(TypeError, match="holds no vision tower that can be read"):
        StreamingSession(case.model, case.processor, cacher=CacherConfig())
    # The failed session counts for nothing: another one is not refused.
    StreamingSession(case.model, case.processor).close()


@pytest.mark.parametrize("pruner", [PrunerConfig.paper(17), TokenPruner(PrunerConfig.paper(17))])
def test_budgets_above_a_frames_tokens(case, pruner):
    with pytest.raises(ValueError, match=r"tokens_per_frame must be in 1\.\.16.*but is 17"):
        StreamingSession(case.model, case.processor, pruner=pruner)


def test_a_pruner_that_forgets_frames(case, frames):
    def first(tokens):
        return type("Pruned", (), {"tokens": tokens[:0], "index": torch.zeros(0, 3).long()})

    with StreamingSession(case.model, case.processor, pruner=first) as session:
        with pytest.raises(ValueError, match="of 1 frames, but returned 0 and 0"):
            session.feed(frames)
        assert session.stats.frames == session.stats.tokens_held == 0


@pytest.mark.parametrize(
    ("tokens", "index", "words"),
    [
        (torch.zeros(1, 3, 64), torch.zeros(1, 2).long(), r"index int64 \[3\].*int64 \[2\]"),
        (torch.zeros(1, 3, 64), torch.zeros(1, 3), r"index int64 \[3\].*float32 \[3\]"),
        (torch.zeros(1, 2, 64), torch.tensor([[1, 16]]), r"index in 0\.\.15, .*\[1, 16\]"),
        (torch.zeros(1, 2, 64), torch.tensor([[-1, 3]]), r"index in 0\.\.15, .*\[-1, 3\]"),
        (torch.zeros(1, 2, 63), torch.tensor([[1, 3]]), r"tokens \[k, 64\].*float32 \[2, 63\]"),
        ([[0.0]], [[0]], r"tokens \[k, 64\] of each frame, but returned a list"),
    ],
)
def test_a_pruner_that_returns_something_else(case, frames, tokens, index, words):
    def wrong(_):
        return type("Pruned", (), {"tokens": tokens, "index": index})

    with StreamingSession(case.model, case.processor, pruner=wrong) as session:
        with pytest.raises(ValueError, match=words):
            session.feed(frames)
        assert session.stats.frames == session.stats.tokens_held == 0
    with (
        StreamingSession(case.model, case.processor, pruner=lambda tokens: tokens) as session,
        pytest.raises(TypeError, match="object with tokens and index.* a Tensor"),
    ):
        session.feed(frames)


def test_other_arguments(case):
    for name, value, error, words in (
        ("pruner", 4, TypeError, "pruner must be a PrunerConfig, a TokenPruner or None"),
        ("pruner", TokenPruner, TypeError, "TokenPruner or None, but is <class"),
        ("cacher", 4, TypeError, "cacher must be a CacherConfig, an object with attach"),
        ("cacher", CacherConfig, TypeError, "or None, but is <class"),
        ("memory", 4096, TypeError, r"memory policy, as FullMemory\(\), or None, but is 4096"),
        ("memory", FullMemory, TypeError, "memory must be .* but is <class"),
        ("positions", "dense", ValueError, "'kept' or 'contiguous', but is 'dense'"),
    ):
        with pytest.raises(error, match=words):
            StreamingSession(case.model, case.processor, **{name: value})


def test_a_processor_of_another_model(case):
    larger = make_case(1, image=64).processor
    with pytest.raises(ValueError, match="makes frames of 64 × 64 pixels, but the model takes 32"):
        StreamingSession(case.model, larger)
    pixels, template = case.processor.pixels, case.processor.template
    other = SessionProcessor(case.processor.tokenizer, template, pixels, "<image>")
    with pytest.raises(ValueError, match="its <image> is token .* but the model's is"):
        StreamingSession(case.model, other)
    fewer = make_case(1, vocabulary=261).model
    case.processor.tokenizer.add_tokens(["<more>"])
    with pytest.raises(ValueError, match="tokenizer has 262 tokens, but the model 261"):
        StreamingSession(fewer, case.processor)
    with pytest.raises(TypeError, match="processor must be the model's processor.*but is a Polite"):
        StreamingSession(case.model, type("Polite", (), {})())


def test_a_template_without_a_place_for_videos(case):
    processor = SessionProcessor(case.processor.tokenizer, "hello", case.processor.pixels)
    with pytest.raises(ValueError, match="must write one for a video: the prompt has 0"):
        StreamingSession(case.model, processor)


def test_a_template_that_puts_the_question_first(case, frames):
    template = "{{ messages[0]['content'][-1]['text'] }}<video>:"
    text = "{{ messages[0]['content'][-1]['text'] }}:"
    template = "{% if messages[0]['content'] | length > 1 %}" + template
    template += "{% else %}" + text + "{% endif %}"
    processor = SessionProcessor(case.processor.tokenizer, template, case.processor.pixels)
    with StreamingSession(case.model, processor) as session:
        session.logits(QUESTION)
        session.feed(frames)
        with pytest.raises(ValueError, match="must put a video before the question"):
            session.ask(QUESTION)


def test_attention_that_misreads_gaps(case):
    case.model.model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="must be 'contiguous' with attention 'flash_attention_2'"):
        StreamingSession(case.model, case.processor)
    StreamingSession(case.model, case.processor, positions="contiguous").close()


def test_tokens_that_are_not_finite(case, frames):
    pruner = PrunerConfig.paper(4)
    with StreamingSession(case.model, case.processor, pruner=pruner) as session:
        session.feed(frames[:2])
        before = session.logits(QUESTION)
        weight = case.model.model.multi_modal_projector.linear_2.bias
        with torch.no_grad():
            weight[3] += torch.inf
            with pytest.raises(
                ValueError, match="finite tokens, but frame 2 of the stream does not"
            ):
                session.feed(frames[2:4])
            weight.copy_(torch.nan_to_num(weight, posinf=0.0))
        assert session.stats.frames == 2
        assert session.stats.tokens_held > 0
        assert torch.equal(session.logits(QUESTION), before)


class Interrupts:
    """Interrupts an LLM in its second layer, when it is told to."""

    def __init__(self, model) -> None:
        self.on = False
        model.model.language_model.layers[1].register_forward_pre_hook(self)

    def __call__(self, *_) -> None:
        if self.on:
            self.on = False
            raise KeyboardInterrupt


def test_ctrl_c_in_the_middle_of_a_chunk_leaves_nothing_of_it(case, frames):
    settings = {"cacher": CacherConfig.paper(refresh_interval=2), "pruner": PrunerConfig.paper(4)}
    with StreamingSession(case.model, case.processor, **settings) as session:
        interrupts = Interrupts(case.model)
        session.feed(frames[:4])
        before, stats = session.logits(QUESTION), session.stats
        interrupts.on = True
        with pytest.raises(KeyboardInterrupt):
            session.feed(frames[4:6])
        assert torch.equal(session.logits(QUESTION), before)
        assert session.stats == stats
        # The next frame is a refresh, as it would have been.
        session.feed(frames[4:8])
        found = session.logits(QUESTION)
        session.reset()
        session.feed(frames)
        torch.testing.assert_close(found, session.logits(QUESTION), atol=1e-4, rtol=0)


def test_ctrl_c_in_the_first_chunk(case, frames):
    with StreamingSession(case.model, case.processor) as session:
        interrupts = Interrupts(case.model)
        interrupts.on = True
        with pytest.raises(KeyboardInterrupt):
            session.feed(frames[:3])
        assert session.stats.frames == session.stats.tokens_held == 0
        session.feed(frames[:2])
        torch.testing.assert_close(
            session.logits(QUESTION), case.logits(frames[:2]), atol=1e-4, rtol=0
        )


def test_ctrl_c_while_answering_from_inside_the_model(case, frames):
    with StreamingSession(case.model, case.processor) as session:
        interrupts = Interrupts(case.model)
        session.feed(frames[:2])
        before = session.logits(QUESTION)
        pieces = session.ask(QUESTION, stream=True, choose=lambda logits: 5)
        next(pieces)
        interrupts.on = True
        with pytest.raises(KeyboardInterrupt):
            next(pieces)
        assert torch.equal(session.logits(QUESTION), before)


def test_a_full_memory_is_a_runtime_error():
    assert issubclass(MemoryFullError, RuntimeError)
