"""`stc stream --ask`: what it prints and writes, what it refuses, and how it is stopped."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, SiglipVisionConfig

import stc_stream.evaluate.answers as answers_module
import stc_stream.session.untrained as untrained
from stc_stream import (
    CacherConfig,
    PrunerConfig,
    RecentMemory,
    RetrievalMemory,
    StreamingSession,
    WindowMemory,
)
from stc_stream.evaluate.answers import STAGES, SessionComparison
from stc_stream.report.answers.table import size_words
from stc_stream.report.document import stream_schema
from stc_stream.session.load import load_video_llm
from stc_stream.video import open_video

from .conftest import TINY, Outcome

Stc = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """Answer Ctrl-C as a terminal's command does, whoever started the tests deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def ask(stc: Stc, tiny_llm: Path, video: Path) -> Stc:
    """Run `stc stream` on the video and the model."""

    def run(*arguments: object) -> Outcome:
        return stc("stream", video, "--model", tiny_llm, "--max-new-tokens", 4, *arguments)

    return run


@pytest.fixture(scope="module")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    model, processor = untrained.build_qwen2_vl()
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    settings = {"min_pixels": 256, "max_pixels": 1024, "patch_size": 4, "merge_size": 2}
    settings |= {"temporal_patch_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(processor.template)
    return folder


def numbers_of(document: Path) -> dict:
    numbers = json.loads(document.read_text())
    jsonschema.validate(numbers, stream_schema())
    return numbers


def test_frames_go_the_whole_way_to_answers(ask: Stc, tmp_path: Path) -> None:
    document = tmp_path / "numbers.json"
    outcome = ask("--ask", "What?", "--ask", "0.6s:And now?", "--json", document)
    assert (outcome.code, outcome.err) == (0, "")
    lines = [line.strip() for line in outcome.out.splitlines()]
    assert lines.index("0.50 s, frame 2: And now?") < lines.index("1.75 s, frame 7: What?")
    assert sum(line.startswith("dense:") for line in lines) == 2
    assert sum(line.startswith("stc:") for line in lines) == 2
    for words in ("tower", "prefill", "first token", "whole answer", "tokens in cache", "of whole"):
        assert words in outcome.out
    assert "grey.mp4: 8 frames and 2 answers, both ways" in outcome.out
    assert "time from frames to answers" in outcome.out
    table = [line for line in outcome.out.splitlines() if line[:1] in ("┏", "┃", "├", "│", "└")]
    assert max(map(len, table)) <= 80
    numbers = numbers_of(document)
    assert numbers["complete"] and numbers["source"]["name"] == "grey.mp4"
    assert "summary" not in numbers and "frames" not in numbers
    session = numbers["session"]
    assert (session["frames"], session["compared_frames"]) == (8, 8)
    assert [question["frames"] for question in session["questions"]] == [3, 8]
    assert [question["time"] for question in session["questions"]] == [0.6, None]
    assert session["not_asked"] == []


def test_what_is_written_is_what_plain_sessions_do(
    ask: Stc, tiny_llm: Path, video: Path, tmp_path: Path
) -> None:
    document = tmp_path / "numbers.json"
    options = ("--update-ratio", 0.5, "--refresh-interval", 3, "--refresh-on-change", 1)
    options = (*options, "--tokens-per-frame", 6, "--chunk", 3)
    assert ask("--ask", "What?", *options, "--json", document).code == 0
    numbers = numbers_of(document)
    session = numbers["session"]
    frames = list(open_video(video))
    images = torch.stack([torch.from_numpy(frame.image) for frame in frames])
    assert [chunk["indices"] for chunk in session["chunks"]] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    times = [time for chunk in session["chunks"] for time in chunk["times"]]
    assert times == [frame.time for frame in frames]
    parts = {
        "dense": {},
        "compressed": {
            "cacher": CacherConfig(0.5, 3, refresh_on_change=1),
            "pruner": PrunerConfig.paper(tokens_per_frame=6),
        },
    }
    for side, settings in parts.items():
        llm = load_video_llm(str(tiny_llm), device="cpu")
        with StreamingSession(llm.model, llm.processor, **settings) as plain:
            for chunk, part in zip(session["chunks"], images.split(3), strict=True):
                fed, own = plain.feed(part), chunk[side]
                assert own["kept"] == fed.kept
                assert own["tokens_held"] == plain.stats.tokens_held
                assert own["bytes_device"] == plain.stats.bytes_device
            answer = plain.ask("What?", 4)
            assert session["questions"][0][side]["answer"] == answer
            held = session["held"][side]
            assert held == {name: getattr(plain.stats, name) for name in held}
    times = session["times"]
    for side in parts:
        stages = times[side]["stages_ms"]
        assert times[side]["whole_ms"] == pytest.approx(sum(stages.values()))
        assert sum(times[side]["shares"].values()) == pytest.approx(1)
        fed = sum(chunk[side]["stages_ms"]["tower"] for chunk in session["chunks"])
        assert stages["tower"] == pytest.approx(fed)
        answered = session["questions"][0][side]["answer_ms"]
        assert stages["first_token"] + stages["later_tokens"] == pytest.approx(answered)
    saved = sum(times["saved_of_whole"][stage] for stage in STAGES)
    assert saved == pytest.approx(times["reduction"])
    assert numbers["config"]["pruner"]["tokens_per_frame"] == 6
    assert session["model"]["tokens_per_frame"] == 16


def test_the_report_is_one_page(ask: Stc, tmp_path: Path) -> None:
    outcome = ask("--ask", "What <is> it?", "--ask", "1s:Now?", "--report", tmp_path / "report")
    assert (outcome.code, outcome.err) == (0, "")
    page = tmp_path / "report" / "index.html"
    assert outcome.out.endswith(f"report: {page}\n")
    assert list(page.parent.iterdir()) == [page]
    text = page.read_text()
    assert "What &lt;is&gt; it?" in text and "STC report: grey.mp4" in text


@pytest.mark.parametrize(
    ("name", "memory", "positions"),
    [
        ("recent:frames=2", RecentMemory(2), "kept"),
        ("window:sink_tokens=4,window_tokens=9", WindowMemory(4, 9), "contiguous"),
        ("retrieval:blocks=2,window_tokens=9", RetrievalMemory(9, 2), "contiguous"),
    ],
)
def test_the_memory_is_chosen_by_name(
    ask: Stc, tiny_llm: Path, video: Path, tmp_path: Path, name: str, memory: object, positions: str
) -> None:
    document = tmp_path / "numbers.json"
    options = ("--memory", name, "--report", tmp_path, "--json", document, "--fps", 2)
    outcome = ask("--ask", "What?", *options)
    assert (outcome.code, outcome.err) == (0, "")
    session = numbers_of(document)["session"]
    assert session["memory"] == {"policy": type(memory).__name__, **vars(memory)}
    assert session["positions"] == positions
    frames = list(open_video(video, fps=2))
    llm = load_video_llm(str(tiny_llm), device="cpu")
    with StreamingSession(
        llm.model, llm.processor, cacher=CacherConfig(), pruner=PrunerConfig.paper(),
        memory=memory, positions=positions,
    ) as plain:  # fmt: skip
        for frame, chunk in zip(frames, session["chunks"], strict=True):
            plain.feed(frame.image[None])
            own = chunk["compressed"]
            assert own["tokens_held"] == plain.stats.tokens_held
            assert own["bytes_device"] == plain.stats.bytes_device
            assert own["bytes_host"] == plain.stats.bytes_host
        held = session["held"]["compressed"]
        assert held == {name: getattr(plain.stats, name) for name in held}
        answer = plain.ask("What?", 4)
        retrieved = plain.retrieved
    dense, compressed = (session["questions"][0][side] for side in ("dense", "compressed"))
    assert compressed["answer"] == answer
    # Every second frame of the source was fed.
    assert compressed["retrieved"] == [[2 * number for number in layer] for layer in retrieved]
    assert dense["retrieved"] == []
    page = (tmp_path / "index.html").read_text()
    assert ("brought back" in page) == name.startswith("retrieval")
    assert f"compressed, {repr(memory).replace(', host_bytes=None', '')}" in page
    if session["held"]["compressed"]["frames_forgotten"]:
        assert "frames forgotten" in outcome.out


def test_a_model_whose_frames_wait_for_each_other(
    ask: Stc, tmp_path: Path, tiny_qwen: Path
) -> None:
    """Of a Qwen2-VL, two frames make a temporal patch: after an odd number one waits."""
    document = tmp_path / "numbers.json"
    options = ("--model", tiny_qwen, "--frames", 3, "--memory", "window", "--report", tmp_path)
    outcome = ask("--ask", "What?", *options, "--json", document)
    assert (outcome.code, outcome.err) == (0, "")
    session = numbers_of(document)["session"]
    assert session["model"]["family"] == "Qwen2-VL"
    assert session["model"]["tokens_per_frame"] is None
    assert [chunk["dense"]["kept"] for chunk in session["chunks"]][::2] == [0, 0]
    held = session["held"]
    assert held["dense"]["frames_waiting"] == held["compressed"]["frames_waiting"] == 1
    assert held["dense"]["tokens_held"] > held["compressed"]["tokens_held"] > 0
    assert session["questions"][0]["compressed"]["ending"] == "limit"
    # Its positions have several axes: keys can't be moved.
    assert session["positions"] == "kept"
    outcome = ask("--ask", "What?", "--model", tiny_qwen, "--memory", "retrieval")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "stc: --memory retrieval: " in outcome.err


def test_the_pruner_and_the_method_are_chosen_by_name(ask: Stc, tmp_path: Path) -> None:
    document = tmp_path / "numbers.json"
    options = ("--method", "skip:refresh_interval=2", "--pruner", "gaussian", "--json", document)
    outcome = ask("--ask", "What?", *options)
    assert (outcome.code, outcome.err) == (0, "")
    assert "skip:refresh_interval=2 saved" in outcome.out or "2 lost" in outcome.out
    numbers = numbers_of(document)
    assert numbers["config"]["method"] == "skip:refresh_interval=2"
    assert numbers["config"]["pruner"]["strategy"] == "gaussian"
    assert {chunk["compressed"]["kept"] for chunk in numbers["session"]["chunks"]} == {4}


@pytest.mark.parametrize(
    ("options", "kept", "policy"),
    [
        (("--method", "recent:frames=2"), 16, "RecentMemory"),
        (("--method", "skip"), 16, "FullMemory"),
        (("--method", "skip", "--tokens-per-frame", 3), 3, "FullMemory"),
        (("--method", "stc", "--memory", "window"), 4, "WindowMemory"),
        (("--method", "uniform:tokens_per_frame=5"), 5, "FullMemory"),
    ],
)
def test_a_method_has_its_own_parts_and_no_others(
    ask: Stc, tmp_path: Path, options: tuple[str, ...], kept: int, policy: str
) -> None:
    document = tmp_path / "numbers.json"
    outcome = ask("--ask", "What?", "--frames", 2, *options, "--json", document)
    assert (outcome.code, outcome.err) == (0, "")
    session = numbers_of(document)["session"]
    assert {chunk["compressed"]["kept"] for chunk in session["chunks"]} == {kept}
    assert session["memory"]["policy"] == policy


def test_a_method_that_prunes_alone_is_a_pruner_too(ask: Stc, tmp_path: Path) -> None:
    document = tmp_path / "numbers.json"
    options = ("--pruner", "uniform", "--tokens-per-frame", 3, "--json", document)
    assert ask("--ask", "What?", *options).code == 0
    numbers = numbers_of(document)
    assert numbers["config"]["cacher"]["refresh_interval"] == 4
    assert numbers["config"]["pruner"]["strategy"] == "Uniform"
    assert {chunk["compressed"]["kept"] for chunk in numbers["session"]["chunks"]} == {3}


def test_the_pruner_is_chosen_without_questions_too(
    stc: Stc, tiny_model: Path, video: Path, tmp_path: Path
) -> None:
    document = tmp_path / "numbers.json"
    options = ("--model", tiny_model, "--pruner", "gaussian", "--json", document)
    assert stc("stream", video, *options).code == 0
    assert numbers_of(document)["config"]["pruner"]["strategy"] == "gaussian"


def test_pieces_are_printed_as_they_come(
    ask: Stc, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    printed: list[str] = []

    def choose(logits: torch.Tensor) -> int:
        printed.append(capfd.readouterr().out)
        return 65

    monkeypatch.setattr(answers_module, "most_likely", choose)
    assert ask("--ask", "What?").code == 0
    # The warm-up of both sides chooses twice each and prints nothing of it.
    assert ["frame 7" in piece for piece in printed[:5]] == [False] * 4 + [True]
    assert len(set(printed[5:8])) == 1 and len(printed[5]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--ask", ""), "'--ask': a question is empty: give its words"),
        (("--ask", "2s: "), "'--ask': a question is empty"),
        (("--ask", "-1s:What?"), "'-1' is no moment of a video: give seconds, as in 12.5s:TEXT"),
        (("--ask", "1.2.3s:What?"), "'1.2.3' is no moment of a video"),
        (("--ask", "3s:What?"), "--ask 3s:… is after the end of what is streamed of grey"),
        (("--ask", "1s:What?", "--frames", "2"), "is after the end of what is streamed"),
        (("--ask", "a <video> b"), "--ask must not hold <video>"),
        (("--ask", "What?", "--memory", "none"), "--memory must be one of full, recent,"),
        (
            ("--ask", "What?", "--memory", "window", "--method", "recent"),
            "--memory is not for recent, which says itself what it remembers",
        ),
        (("--ask", "What?", "--memory", ""), "'--memory': it is empty"),
        (("--ask", "What?", "--memory", "recent:n=2"), "--memory recent has frames, but no 'n'"),
        (("--ask", "What?", "--memory", "recent:frames=0"), "--memory recent: frames must be at"),
        (("--ask", "What?", "--memory", "full:tokens=9999"), "--memory full:tokens=9999: tokens"),
        (
            ("--ask", "What?", "--memory", "full:tokens=20", "--chunk", "8"),
            "--memory full:tokens=20: the memory holds 0 of 20 tokens, and 38 more do not fit",
        ),
        (
            ("--ask", "What?", "--memory", "window:window_tokens=3"),
            "--memory window:window_tokens=3: the window has room for 3 tokens, but 4 come at once",
        ),
        (
            ("--ask", "What?", "--memory", "retrieval:host_bytes=9"),
            "--memory retrieval:host_bytes=9: host_bytes is 9, but a frame of 4 tokens has 2304",
        ),
        (("--ask", "What\udcff"), "--ask must be whole characters, but has '\\udcff' in place 4"),
        (("--ask", "What?", "--chunk", "0"), "'--chunk': 0 is not in the range x>=1"),
        (("--ask", "What?", "--max-new-tokens", "0"), "'--max-new-tokens': 0 is not in the range"),
        (("--ask", "What?", "--pruner", "best"), "--pruner must be one of dual_anchor, gaussian"),
        (("--ask", "What?", "--pruner", "merge"), "gaussian, dtd, evs, evs_per_frame, random,"),
        (("--ask", "What?", "--pruner", "dtd:threshold=x"), "--pruner dtd: threshold must be"),
        (
            ("--ask", "What?", "--pruner", "dtd", "--tokens-per-frame", "3"),
            "--tokens-per-frame is not for dtd, which says itself what it keeps",
        ),
        (("--ask", "What?", "--tokens-per-frame", "17"), "--tokens-per-frame must be in 1..16"),
        (("--ask", "What?", "--device", "toaster"), "--device must be auto, cpu, cuda or cuda:N"),
        (("--ask", "What?", "--model", "MISSING"), "there is no model"),
        (("--ask", "What?", "--model", "TOWER"), "is a siglip_vision_model model, which cannot be"),
        (("--ask", "What?", "--model", "TEXT"), "is a qwen2 model, which cannot be asked about a"),
        (("--ask", "What?", "--model", "BARE"), "has no processor that can be read"),
        (("--ask", "What?", "--model", "BROKEN"), "cannot be loaded"),
        (("--ask", "What?", "--model", "OTHER"), "processor must be the model's"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_code_two(
    ask: Stc, tiny_llm: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    make = {
        "MISSING": lambda folder: folder.mkdir(),
        "TOWER": lambda folder: SiglipVisionConfig(**TINY).save_pretrained(folder),
        "TEXT": lambda folder: Qwen2Config(hidden_size=8).save_pretrained(folder),
        "BARE": lambda folder: copied(tiny_llm, folder, "preprocessor_config.json"),
        "BROKEN": lambda folder: copied(tiny_llm, folder, "model.safetensors"),
        "OTHER": lambda folder: with_larger_frames(tiny_llm, folder),
    }  # fmt: skip
    for name, make_folder in make.items():
        if name in arguments:
            make_folder(tmp_path / name)
    real = [str(tmp_path / word) if word in make else word for word in arguments]
    outcome = ask(*real)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert words in outcome.err
    assert outcome.err.startswith("stc: ")
    assert "tower" not in outcome.out


def test_frames_that_the_model_does_not_take(
    ask: Stc, stc: Stc, tiny_llm: Path, tiny_qwen: Path, tmp_path: Path
) -> None:
    """What only a frame can tell is one line as well."""
    outcome = ask("--ask", "What?", "--model", tiny_qwen, "--tokens-per-frame", 50)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "--tokens-per-frame must be in 1..12" in outcome.err
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (600, 2)).save(pictures / "0.png")
    outcome = stc("stream", pictures, "--model", tiny_qwen, "--ask", "What?")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "frames must be at most 200 times as long on one side" in outcome.err
    broken = tmp_path / "broken"
    shutil.copytree(tiny_llm, broken)
    weights = load_file(broken / "model.safetensors")
    (bias,) = (name for name in weights if name.endswith("multi_modal_projector.linear_2.bias"))
    weights[bias].fill_(torch.nan)
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    outcome = ask("--ask", "What?", "--model", broken)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "frames must give finite tokens, but frame 0 of the stream does not" in outcome.err


@pytest.mark.parametrize(
    ("option", "value"), [("--chunk", "2"), ("--memory", "full"), ("--max-new-tokens", "9")]
)
def test_what_goes_with_questions_is_refused_without_one(
    stc: Stc, video: Path, option: str, value: str
) -> None:
    outcome = stc("stream", video, option, value)
    assert outcome.code == 2
    assert outcome.err == f"stc: {option} is for questions: give --ask as well\n"


def copied(model: Path, folder: Path, missing: str) -> None:
    shutil.copytree(model, folder)
    (folder / missing).unlink()


def with_larger_frames(model: Path, folder: Path) -> None:
    shutil.copytree(model, folder)
    pixels = {"size": {"height": 64, "width": 64}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, int]], None]:
    """Have Ctrl-C come, so many times, when so many tokens have been chosen after the warm-up."""

    def at(signals: dict[int, int]) -> None:
        # The warm-up of both sides chooses twice each.
        count = [-4]

        def choose(logits: torch.Tensor) -> int:
            count[0] += 1
            for _ in range(signals.get(count[0], 0)):
                signal.raise_signal(signal.SIGINT)
            return 65

        monkeypatch.setattr(answers_module, "most_likely", choose)

    return at


def test_ctrl_c_ends_an_answer_and_the_stream_goes_on(
    ask: Stc, tmp_path: Path, chosen: Callable[..., None]
) -> None:
    document = tmp_path / "numbers.json"
    chosen({2: 1})
    outcome = ask("--ask", "0.6s:What?", "--ask", "And now?", "--json", document)
    assert (outcome.code, outcome.err) == (0, "")
    assert "stopped; once more ends the run" in outcome.out
    numbers = numbers_of(document)
    assert numbers["complete"]
    first, second = numbers["session"]["questions"]
    endings = [first[side] and first[side]["ending"] for side in ("dense", "compressed")]
    assert sorted(endings, key=str) == [None, "stopped"]
    assert {second[side]["ending"] for side in ("dense", "compressed")} == {"limit"}
    assert numbers["session"]["frames"] == 8
    # What was stopped is in no sum.
    assert numbers["session"]["compared_questions"] == 1


@pytest.mark.parametrize("signals", [{2: 2}, {2: 1, 3: 1}])
def test_ctrl_c_twice_leaves_what_there_is(
    ask: Stc, tmp_path: Path, chosen: Callable[..., None], signals: dict[int, int]
) -> None:
    document = tmp_path / "numbers.json"
    chosen(signals)
    questions = ("--ask", "0.6s:What?", "--ask", "0.6s:And?", "--ask", "Why?")
    outcome = ask(*questions, "--json", document)
    assert outcome.code == 0
    assert "warning: stopped at frame 2; this is what there is so far" in outcome.err
    assert "warning: not asked at the end: 'Why?'" in outcome.err
    assert "Traceback" not in outcome.err
    assert "3 frames and 0 answers, both ways" in outcome.out
    numbers = numbers_of(document)
    assert (numbers["complete"], numbers["session"]["frames"]) == (False, 3)


def test_ctrl_c_between_answers_stops_the_stream(
    ask: Stc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed, fed = SessionComparison.feed, []

    def feed_and_stop(self: SessionComparison, *arguments: object) -> object:
        runs = feed(self, *arguments)
        fed.append(runs)
        if len(fed) == 4:
            signal.raise_signal(signal.SIGINT)
        return runs

    monkeypatch.setattr(SessionComparison, "feed", feed_and_stop)
    outcome = ask("--ask", "What?")
    assert outcome.code == 0
    assert "warning: stopped at frame 2" in outcome.err
    assert "not asked at the end: 'What?'" in outcome.err


def test_a_memory_that_is_full_ends_the_frames_and_not_the_answers(
    ask: Stc, tiny_llm: Path, sample: Path, tmp_path: Path, stc: Stc
) -> None:
    document, small = tmp_path / "numbers.json", tmp_path / "small"
    shutil.copytree(tiny_llm, small)
    config = json.loads((small / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 120
    (small / "config.json").write_text(json.dumps(config))
    outcome = ask("--ask", "What?", "--model", small, "--json", document)
    assert outcome.code == 0
    assert "warning: dense: the model's context has 120 positions" in outcome.err
    numbers = numbers_of(document)
    session = numbers["session"]
    # The prompt's beginning and seven frames of 16 tokens fit.
    assert session["frames"] == 7
    assert all("120 positions" in session["full"][side] for side in ("dense", "compressed"))
    assert session["questions"][0]["frames"] == 7


def test_frames_that_make_no_numbers_are_one_line(ask: Stc, tiny_llm: Path, tmp_path: Path) -> None:
    llm = load_video_llm(str(tiny_llm), device="cpu")
    shutil.copytree(tiny_llm, tmp_path / "broken")
    torch.nn.init.constant_(llm.model.model.multi_modal_projector.linear_2.bias, torch.nan)
    llm.model.save_pretrained(tmp_path / "broken")
    outcome = ask("--ask", "What?", "--model", tmp_path / "broken")
    assert outcome.code == 2
    # Above it, transformers says that it wrote the model.
    assert outcome.err.splitlines()[-1].startswith("stc: frame 0: frames must give finite tokens")


def test_json_at_standard_output_is_all_there_is(ask: Stc) -> None:
    outcome = ask("--ask", "What?", "--json", "-")
    assert (outcome.code, outcome.err) == (0, "")
    jsonschema.validate(json.loads(outcome.out), stream_schema())


def test_the_default_model_says_that_its_weights_are_random(
    stc: Stc, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, wanted = untrained.build_llava_onevision, []

    def build_small(sizes: untrained.LlavaSizes) -> object:
        wanted.append(sizes)
        return build()

    monkeypatch.setattr(untrained, "build_llava_onevision", build_small)
    outcome = stc("stream", video, "--ask", "What?", "--max-new-tokens", 2, "--frames", 2)
    assert (outcome.code, outcome.err) == (0, "")
    assert "random weights (seed 0): what it answers means nothing" in outcome.out
    assert "The weights are random: latency is a trained model's" in outcome.out
    (sizes,) = wanted
    assert (sizes.image, sizes.patch, sizes.tower[:2]) == (224, 16, (768, 3072))
    assert (sizes.llm[:2], sizes.context) == ((896, 4864), 32768)


def test_bytes_in_words() -> None:
    sizes = [0, 1023, 1024, 1536, 2**20 - 1, 150 * 2**20, 3 * 2**29]
    words = ["0 B", "1023 B", "1 KiB", "1.5 KiB", "1024 KiB", "150 MiB", "1.5 GiB"]
    assert [size_words(size) for size in sizes] == words


def test_help_names_what_goes_with_questions(stc: Stc) -> None:
    outcome = stc("stream", "--help")
    for word in ("--ask", "--memory", "--pruner", "--chunk", "--max-new-tokens"):
        assert word in outcome.out
