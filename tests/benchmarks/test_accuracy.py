"""The small video LLM: its tokens, its two stages, and what it is measured with."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.accuracy import measure
from benchmarks.accuracy.features import LONG, Features, make_features, pooled_tokens
from benchmarks.accuracy.llm import (
    Batch,
    answer_logits,
    encode_questions,
    llm_loss,
    training_batch,
)
from benchmarks.accuracy.loop import OutOfTime, StateError
from benchmarks.accuracy.model import (
    GRID,
    TOKENS,
    VIDEO,
    WIDTH,
    build_model,
    build_tokenizer,
    llm_weights,
    tower_weights,
    vocabulary,
)
from benchmarks.accuracy.tower import (
    build_heads,
    frames_with_labels,
    labels_loss,
    patch_labels,
    pixels,
)
from stc_stream import CacherConfig
from stc_stream.evaluate.scenes import ANSWERS, Clip, make_clip, make_script, question_texts
from stc_stream.evaluate.scenes.script import COLOURS, PATTERNS

pytest.importorskip("skimage", reason="photographs come with scikit-image")


@pytest.fixture
def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def model(seed: int):
    """A model with weights so large that every answer depends on the video."""
    made = build_model(seed)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim > 1:
                weight.mul_(3)
    return made.requires_grad_(False)


def some_clips(generator: np.random.Generator, count: int, frames: int) -> list[Clip]:
    first = int(generator.integers(2**31))
    return [make_clip("train", first + number, frames) for number in range(count)]


def random_features(generator: np.random.Generator, clips: int) -> Features:
    tokens = generator.normal(size=(clips, LONG, TOKENS, WIDTH)).astype(np.float16)
    first = int(generator.integers(2**31))
    return Features(tokens, [make_script("train", first + i, LONG) for i in range(clips)])


def test_every_question_and_answer_is_one_token(tmp_path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    read = type(tokenizer).from_pretrained(tmp_path)
    texts = [*question_texts(), *(answer for answers in ANSWERS.values() for answer in answers)]
    assert len(tokenizer) == len(vocabulary()) == len(set(vocabulary()))
    for each in (tokenizer, read):
        for text in texts:
            (token,) = each(text).input_ids
            assert token == vocabulary().index(text)
            assert each.decode([token]) == text
        ids = each(f"{VIDEO * 3} {question_texts()[0]}").input_ids
        assert [vocabulary()[token] for token in ids] == [VIDEO] * 3 + [question_texts()[0]]
        assert set(each("Is it raining?").input_ids) == {each.unk_token_id}
        assert vocabulary()[each.eos_token_id] == "<end>"
        assert vocabulary()[each.pad_token_id] == "<pad>"


def test_labels_say_what_covers_a_third_of_a_patch(generator: np.random.Generator) -> None:
    for clip in some_clips(generator, 8, 6):
        for frame, state in enumerate(clip.script.states):
            objects = [(*clip.script.sign, 1 + 24 + state.digit)]
            if state.ring:
                objects.append((*clip.script.corner, 1 + 24 + 10 + COLOURS.index(state.ring)))
            for square in state.squares:
                kind = 4 * COLOURS.index(square.colour) + PATTERNS.index(square.pattern)
                objects.append((square.x, square.y, 1 + kind))
            labels = patch_labels(clip.script, frame)
            for row in range(GRID):
                for column in range(GRID):
                    shares = {0: 64 / 3}
                    for x, y, label in objects:
                        wide = min(x + 16, 8 * column + 8) - max(x, 8 * column)
                        high = min(y + 16, 8 * row + 8) - max(y, 8 * row)
                        if wide > 0 and high > 0:
                            shares[label] = max(shares.get(label, 0), wide * high)
                    most = max(shares.values())
                    assert shares[labels[row, column]] == most


def test_the_tower_learns_one_batch(seed: int, generator: np.random.Generator) -> None:
    clips = some_clips(generator, 4, 4)
    frames = pixels(np.stack([clip.frames[-1] for clip in clips]))
    labels = torch.from_numpy(np.stack([patch_labels(clip.script, 3) for clip in clips]))
    model, heads = build_model(seed), build_heads(seed)
    weights = [*tower_weights(model), *heads.parameters()]
    losses = fit(weights, lambda: labels_loss(model, heads, frames, labels), 15)
    assert losses[-1] < losses[0] / 2


def test_the_llm_learns_one_batch(seed: int, generator: np.random.Generator) -> None:
    """Thirty steps from scratch halve the loss."""
    batch = training_batch(random_features(generator, 5), 0, 100, seed, gaps=False)
    part = Batch(*(value[:3] for value in vars(batch).values()))
    model = build_model(seed)
    losses = fit(llm_weights(model), lambda: llm_loss(model, part), 30)
    assert losses[-1] < losses[0] / 2


def fit(weights: list[Tensor], loss, steps: int) -> list[float]:
    optimiser = torch.optim.AdamW(weights, lr=1e-3)
    losses = []
    for _ in range(steps):
        value = loss()
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses.append(value.item())
    return losses


def test_a_step_follows_from_its_number_and_the_seed(generator: np.random.Generator) -> None:
    features = random_features(generator, 6)
    one, again = (training_batch(features, 7, 10, 3, gaps=True) for _ in range(2))
    for name, value in vars(one).items():
        assert torch.equal(value, getattr(again, name))
    for other in (
        training_batch(features, 8, 10, 3, gaps=True),
        training_batch(features, 7, 10, 4, gaps=True),
    ):
        assert one.video.shape != other.video.shape or not torch.equal(one.video, other.video)
    frames, labels = frames_with_labels(5, 2)
    again, same = frames_with_labels(5, 2)
    assert torch.equal(frames, again)
    assert torch.equal(labels, same)
    assert not torch.equal(frames, frames_with_labels(6, 2)[0])
    assert frames.shape == (36, 3, 96, 96)


def test_a_batch_sees_a_run_of_frames_forwards_or_backwards(
    generator: np.random.Generator,
) -> None:
    features = random_features(generator, 5)
    # Each token says which clip, frame and place it is of.
    clip, frame, place = np.mgrid[:5, :LONG, :TOKENS]
    features.tokens[..., 0], features.tokens[..., 1], features.tokens[..., 2] = clip, frame, place
    sign = vocabulary().index("What does the sign say now?")
    steps = set()
    for step, frames in ((0, 4), (30, 8), (90, 12)):
        batch = training_batch(features, step, 100, 1, gaps=False)
        assert batch.video.shape == (16, frames * TOKENS, WIDTH)
        assert torch.equal(batch.places, torch.arange(frames * TOKENS).expand(16, -1))
        shown = batch.video.view(16, frames, TOKENS, WIDTH)[..., :3].int()
        for row in range(16):
            assert (shown[row, :, :, 0] == shown[row, 0, 0, 0]).all()
            assert (shown[row, :, :, 2] == torch.arange(TOKENS)).all()
            seen = shown[row, :, 0, 1]
            assert torch.equal(shown[row, :, :, 1], seen[:, None].expand(-1, TOKENS))
            (way,) = set((seen[1:] - seen[:-1]).tolist())
            steps.add(way)
            states = features.scripts[shown[row, 0, 0, 0]].states
            asked = batch.questions[row] == sign
            assert asked.any()
            digits = [str(states[frame].digit) for frame in seen[batch.moments[row][asked]]]
            assert [vocabulary()[answer] for answer in batch.answers[row][asked]] == digits
    assert steps == {1, -1}


def test_gaps_leave_random_tokens_where_they_were(generator: np.random.Generator) -> None:
    features = random_features(generator, 4)
    dense = training_batch(features, 95, 100, 6, gaps=False)
    gaps = training_batch(features, 95, 100, 6, gaps=True)
    for name in ("questions", "answers", "moments"):
        assert torch.equal(getattr(dense, name), getattr(gaps, name))
    assert (gaps.places.diff() > 0).all()
    whole = dense.video.gather(1, gaps.places[..., None].expand(-1, -1, WIDTH))
    assert torch.equal(gaps.video, whole)
    kept = torch.nn.functional.one_hot(gaps.places // TOKENS, 12).sum(1)
    assert (kept == kept[0]).all()
    assert kept.min() >= 3
    assert len(kept[0].unique()) > 2
    assert not (gaps.places == gaps.places[0]).all()


def stock_logits(model, frames: np.ndarray, question: int, answer: int) -> Tensor:
    """Return transformers' own logits after the question and after the answer, [2, vocabulary]."""
    video = vocabulary().index(VIDEO)
    ids = [video] * (len(frames) * TOKENS + 1) + [question, answer]
    return model(
        input_ids=torch.tensor([ids]), pixel_values_videos=pixels(frames)[None], use_cache=False
    ).logits[0, -2:]


def test_many_questions_in_one_pass_are_answered_as_one_by_one(
    model, generator: np.random.Generator
) -> None:
    clips = some_clips(generator, 3, 6)
    tokens = [pooled_tokens(model, clip.frames) for clip in clips]
    video = torch.stack(tokens).flatten(1, 2)
    places = torch.arange(6 * TOKENS).expand(3, -1)
    batch = Batch(video, places, *encode_questions([list(clip.questions) for clip in clips]))
    answered, after = answer_logits(model, batch)
    for row, clip in enumerate(clips):
        for column, question in enumerate(clip.questions):
            expected = stock_logits(
                model,
                clip.frames[: question.frame + 1],
                batch.questions[row, column],
                batch.answers[row, column],
            )
            torch.testing.assert_close(answered[row, column], expected[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(after[row, column], expected[1], atol=1e-4, rtol=1e-4)
    assert answered[0].std(dim=0).mean() > 0.01


def test_questions_over_gaps_are_answered_as_one_by_one(
    model, generator: np.random.Generator
) -> None:
    whole = training_batch(random_features(generator, 4), 50, 100, 2, gaps=True)
    batch = Batch(*(value[:3] for value in vars(whole).values()))
    batch = replace(
        batch,
        questions=batch.questions[:, :9],
        answers=batch.answers[:, :9],
        moments=batch.moments[:, :9],
    )
    answered, after = answer_logits(model, batch)
    embed = model.get_input_embeddings()
    for row in range(3):
        for column in range(9):
            end = (batch.moments[row, column] + 1) * TOKENS
            seen = batch.places[row] < end
            texts = torch.stack([batch.questions[row, column], batch.answers[row, column]])
            newline = model.model.image_newline[None]
            inputs = torch.cat([batch.video[row][seen], newline, embed(texts)])
            places = torch.cat([batch.places[row][seen], end + torch.arange(3)])
            # With a mask of its own: without one, transformers takes gaps for packed sequences.
            mask = torch.ones(1, 1, len(places), len(places), dtype=torch.bool).tril()
            hidden = model.model.language_model(
                inputs_embeds=inputs[None],
                position_ids=places[None],
                attention_mask=mask,
                use_cache=False,
            ).last_hidden_state[0, -2:]
            expected = model.lm_head(hidden)
            torch.testing.assert_close(answered[row, column], expected[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(after[row, column], expected[1], atol=1e-4, rtol=1e-4)


def test_a_row_with_fewer_questions_is_padded(generator: np.random.Generator) -> None:
    several = [list(clip.questions) for clip in some_clips(generator, 2, 8)]
    asked = [several[0], several[1][:1]]
    questions, answers, moments = encode_questions(asked)
    assert questions.shape == answers.shape == moments.shape == (2, len(several[0]))
    assert (answers[1, 1:] == -100).all()
    for row, these in enumerate(asked):
        for column, question in enumerate(these):
            assert vocabulary()[questions[row, column]] == question.text
            assert vocabulary()[answers[row, column]] == question.answer
            assert moments[row, column] == question.frame


def test_features_are_of_the_tower_and_go_on_where_they_stopped(model, seed: int, tmp_path) -> None:
    file = tmp_path / "features.npy"
    for done in (1, 2):
        with pytest.raises(OutOfTime, match=f"{done} of 3 clips"):
            make_features(model, 3, file, stop_at=0)
    features = make_features(model, 3, file, stop_at=0)
    for number in range(3):
        clip = make_clip("train", number, LONG)
        assert features.scripts[number] == clip.script
        expected = pooled_tokens(model, clip.frames).half()
        assert torch.equal(torch.from_numpy(features.tokens[number]), expected)
    first = np.array(features.tokens)
    other = build_model(seed + 1).requires_grad_(False)
    assert not np.array_equal(make_features(other, 3, file).tokens, first)
    with pytest.raises(StateError, match=r"features\.npy can't be used; delete .*features\.json"):
        make_features(other, 4, file)
    (tmp_path / "features.json").write_text('{"clips"')
    with pytest.raises(StateError, match=r"features\.json can't be used"):
        make_features(other, 3, file)


def test_baselines_see_what_they_should(model, generator: np.random.Generator) -> None:
    clips = some_clips(generator, 5, 4)
    tokens = [pooled_tokens(model, clip.frames) for clip in clips]
    next_clip = dict(zip(clips, clips[1:] + clips[:1], strict=True))
    said = []
    for frames_seen, answer, shown in (
        (lambda clip, at: clip.frames[: at + 1], measure.right_answers, tokens),
        (
            lambda clip, at: next_clip[clip].frames[: at + 1],
            measure.right_answers,
            measure.of_another_clip(tokens),
        ),
        (lambda clip, at: clip.frames[at : at + 1], measure.right_from_last_frame, tokens),
    ):
        claimed, expected, said_now = [], [], []
        for clip in clips:
            questions, right = [], []
            for question in clip.questions:
                token = vocabulary().index(question.text)
                frames = frames_seen(clip, question.frame)
                best = int(stock_logits(model, frames, token, 0)[0].argmax())
                # What transformers' own model says is called right, or something else is.
                right.append(bool(generator.random() < 0.5))
                called = best if right[-1] else (best + 1) % len(vocabulary())
                questions.append(replace(question, answer=vocabulary()[called]))
                said_now.append(best)
            claimed.append(replace(clip, questions=tuple(questions)))
            expected.append(right)
        assert answer(model, claimed, shown) == expected
        said.append(said_now)
    assert said[0] != said[1] != said[2] != said[0]


def test_shuffled_frames_are_the_same_frames(generator: np.random.Generator) -> None:
    tokens = [torch.arange(12.0)[:, None, None].expand(-1, 3, 2) + 100 * i for i in range(5)]
    mixed = measure.shuffled(tokens, seed=int(generator.integers(2**31)))
    assert any(not torch.equal(a, b) for a, b in zip(mixed, tokens, strict=True))
    for one, other in zip(mixed, tokens, strict=True):
        assert torch.equal(one.sort(dim=0).values, other)


def test_the_cacher_sees_each_clip_anew(model, generator: np.random.Generator) -> None:
    clips = some_clips(generator, 2, 6)  # Not a whole number of refreshes.
    dense = [pooled_tokens(model, clip.frames) for clip in clips]
    cached = measure.cached_tokens(model, clips, CacherConfig.paper())
    for one, other in zip(dense, cached, strict=True):
        torch.testing.assert_close(other[0], one[0], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(other[1], one[1], atol=1e-4, rtol=1e-4)
    # Nothing is left of it.
    torch.testing.assert_close(pooled_tokens(model, clips[1].frames), dense[1])


def test_the_table_counts_by_task(generator: np.random.Generator) -> None:
    clips = some_clips(generator, 30, 8)
    asked = [question for clip in clips for question in clip.questions]
    right = [[question.task != "sign" for question in clip.questions] for clip in clips]
    counted = measure.count(clips, {"most": right})
    head, counts, row = measure.table(counted).splitlines()
    names, cells = head.split(), [cell.split()[0] for cell in re.findall(".{11}", row[15:])]
    assert names == [*ANSWERS, "all", "memory"]
    assert [int(count) for count in counts[15:].split()] == [
        *(sum(question.task == task for question in asked) for task in ANSWERS),
        len(asked),
        sum(not question.in_last_frame for question in asked),
    ]
    signs = sum(question.task == "sign" for question in asked)
    for name, cell in zip(names, cells, strict=True):
        expected = {"sign": 0.0, "all": 100 * (1 - signs / len(asked))}.get(name, 100.0)
        assert cell == f"{expected:.1f}"


def test_an_interval_knows_that_questions_share_clips(generator: np.random.Generator) -> None:
    """It is as wide as the scatter of means over clips that are drawn again and again."""
    sizes = generator.integers(3, 9, 200)
    clip = np.repeat(np.arange(200), sizes)
    hard = generator.random(200) < 0.3
    right = generator.random(len(clip)) < np.where(hard[clip], 0.2, 0.95)
    found = measure.share(right, clip)
    assert (found.asked, found.right) == (len(right), int(right.sum()))
    assert found.percent == pytest.approx(100 * right.mean())
    sums = np.bincount(clip, right)
    means = []
    for _ in range(2000):
        drawn = generator.integers(200, size=200)
        means.append(100 * sums[drawn].sum() / sizes[drawn].sum())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * np.std(means), rel=0.1)
    alone = 196 * np.sqrt(right.mean() * (1 - right.mean()) / len(right))
    assert (found.high - found.low) / 2 > 1.3 * alone
    one = measure.share(right[:2], np.zeros(2, np.int64))
    assert (one.low, one.high) == (None, None)
    assert measure.share(right[:0], clip[:0]).percent is None


def test_what_is_measured_is_read_again(generator: np.random.Generator, tmp_path) -> None:
    clips = some_clips(generator, 3, 5)
    right = [[bool(generator.random() < 0.5) for _ in clip.questions] for clip in clips]
    found = {"model": "dense", "rows": measure.count(clips, {"dense": right})}
    measure.write_json(found, tmp_path / "a" / "found.json")
    assert measure.read_json(tmp_path / "a" / "found.json") == found
