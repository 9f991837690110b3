"""Training that can be stopped anywhere: the loop, its state, and the command."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import Tensor, nn

from benchmarks.accuracy import llm, loop, measure, tower
from benchmarks.accuracy import train as command
from benchmarks.accuracy.loop import OutOfTime, StateError, restore, train

STEPS = 23


class Toy:
    """Weights, and a loss whose randomness follows from the step."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        torch.manual_seed(seed)
        self.module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
        self.weights = list(self.module.parameters())
        self.stop_before = STEPS + 1

    def loss(self, step: int) -> Tensor:
        if step == self.stop_before:
            raise KeyboardInterrupt
        generator = torch.Generator().manual_seed(self.seed + step)
        x = torch.randn(8, 6, generator=generator)
        return (self.module(x) - x.sum(-1, keepdim=True)).square().mean()

    def train(self, file, stop_at: float = float("inf")) -> None:
        train("toy", self.weights, self.loss, STEPS, 0.01, file, stop_at)


def uninterrupted(seed: int, tmp_path) -> Toy:
    toy = Toy(seed)
    toy.train(tmp_path / "whole.pt")
    return toy


def assert_same(toy: Toy, other: Toy) -> None:
    for one, another in zip(toy.weights, other.weights, strict=True):
        assert torch.equal(one, another)


def test_a_run_in_pieces_ends_with_the_same_weights(seed: int, tmp_path) -> None:
    whole = uninterrupted(seed, tmp_path)
    for step in range(1, STEPS):
        with pytest.raises(OutOfTime, match=f"toy: {step} of {STEPS} steps"):
            Toy(seed).train(tmp_path / "state.pt", stop_at=0)
    # Weights other than the first: all of it comes from the file.
    toy = Toy(seed)
    for weight in toy.weights:
        weight.data.zero_()
    toy.train(tmp_path / "state.pt", stop_at=0)
    assert_same(toy, whole)
    again = Toy(seed)
    again.stop_before = 0
    again.train(tmp_path / "state.pt")  # Nothing is left to do.
    assert_same(again, whole)
    assert restore(tmp_path / "state.pt", again.weights)[0] == STEPS


def test_the_schedule_counts_steps_alone(seed: int, tmp_path, monkeypatch) -> None:
    rates: dict[str, list[float]] = {}
    real = torch.optim.AdamW.step

    for name, seconds in (("fast", 0.0), ("slow", 1000.0)):
        now = [0.0]

        def step(self, *arguments, name=name, **options):
            rates.setdefault(name, []).append(self.param_groups[0]["lr"])
            return real(self, *arguments, **options)

        def clock(now=now, seconds=seconds) -> float:
            now[0] += seconds
            return now[0]

        monkeypatch.setattr(torch.optim.AdamW, "step", step)
        monkeypatch.setattr(loop.time, "monotonic", clock)
        Toy(seed).train(tmp_path / f"{name}.pt")
    assert rates["fast"] == rates["slow"]
    assert len(rates["fast"]) == STEPS
    peak = rates["fast"].index(max(rates["fast"]))
    assert rates["fast"][peak] == pytest.approx(0.01)
    assert rates["fast"][peak:] == sorted(rates["fast"][peak:], reverse=True)
    assert 0 < rates["fast"][-1] < 0.001


def test_ctrl_c_leaves_what_was_saved_last(seed: int, tmp_path, monkeypatch) -> None:
    whole = uninterrupted(seed, tmp_path)
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)
    toy = Toy(seed)
    toy.stop_before = 9
    with pytest.raises(KeyboardInterrupt):
        toy.train(tmp_path / "state.pt")
    assert restore(tmp_path / "state.pt", Toy(seed).weights)[0] == 9

    # And in the middle of saving.
    real = torch.save

    def half(values, file) -> None:
        real(values, file)
        file.write_bytes(file.read_bytes()[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(KeyboardInterrupt):
            Toy(seed).train(tmp_path / "state.pt")
    toy = Toy(seed)
    toy.train(tmp_path / "state.pt")
    assert_same(toy, whole)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "a list", "no step", "other weights"])
def test_a_damaged_state_is_named_in_one_line(damage: str, seed: int, tmp_path) -> None:
    file = tmp_path / "state.pt"
    with pytest.raises(OutOfTime):
        Toy(seed).train(file, stop_at=0)
    whole = file.read_bytes()
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "text":
        file.write_text("not a state")
    elif damage == "a list":
        torch.save([1, 2], file)
    else:
        saved = torch.load(file)
        if damage == "no step":
            del saved["step"]
        else:
            saved["weights"] = saved["weights"][:-1]
        torch.save(saved, file)
    with pytest.raises(StateError) as caught:
        Toy(seed).train(file)
    message = str(caught.value)
    assert message.startswith(f"{file} can't be used; delete it to begin this stage anew (")
    assert "\n" not in message


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command with two small steps a stage; gives its code and what it wrote."""
    pytest.importorskip("skimage", reason="photographs come with scikit-image")
    monkeypatch.setattr(tower, "CLIPS", 1)
    monkeypatch.setattr(tower, "FRAMES_A_CLIP", 1)
    monkeypatch.setattr(llm, "CLIPS_A_STEP", 2)
    monkeypatch.setattr(llm, "QUESTIONS", 8)
    monkeypatch.setattr(command, "VALIDATION_CLIPS", 1)
    threads = torch.get_num_threads()

    def call(folder: str, *options: str) -> tuple[int, str, str]:
        state = ["--state", str(tmp_path / folder)]
        small = ["--tower-steps", "2", "--llm-steps", "2", "--clips", "2"]
        monkeypatch.setattr(sys, "argv", ["train", *state, *small, *options])
        code = command.main()
        return code, *capsys.readouterr()

    yield call
    torch.set_num_threads(threads)


def saved_weights(file) -> list[Tensor]:
    return torch.load(file)["weights"]


def test_the_command_in_pieces_and_its_options(run, tmp_path) -> None:
    assert run("whole", "--seed", "5")[0] == 0
    assert torch.get_num_threads() == 1
    told = []
    for _ in range(20):
        code, out, _ = run("pieces", "--seed", "5", "--minutes", "0")
        assert code == 0
        if "run again" not in out:
            break
        told.append(out.strip().splitlines()[-1].split(":")[0])
    assert told == ["tower", "features", "dense", "gaps"]
    for name in ("tower.pt", "dense.pt", "gaps.pt"):
        one, other = (saved_weights(tmp_path / folder / name) for folder in ("whole", "pieces"))
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    dense, gaps = (saved_weights(tmp_path / "whole" / f"{name}.pt") for name in ("dense", "gaps"))
    assert any(not torch.equal(a, b) for a, b in zip(dense, gaps, strict=True))

    code, _, err = run("whole", "--seed", "6")
    assert code == 1
    assert err.count("\n") == 1
    assert "'seed': 5" in err
    assert "'seed': 6" in err

    code, _, _ = run("other", "--seed", "6", "--threads", "2", "--only", "gaps")
    assert code == 0
    assert torch.get_num_threads() == 2
    assert not (tmp_path / "other" / "dense.pt").exists()
    other = saved_weights(tmp_path / "other" / "gaps.pt")
    assert any(not torch.equal(a, b) for a, b in zip(other, gaps, strict=True))

    (tmp_path / "whole" / "dense.pt").write_bytes(b"PK")
    code, _, err = run("whole", "--seed", "5")
    assert code == 1
    assert err.count("\n") == 1
    assert "dense.pt can't be used" in err


def test_ctrl_c_ends_the_command_with_a_line(run, tmp_path, monkeypatch) -> None:
    def interrupted(*_) -> None:
        raise KeyboardInterrupt

    assert run("state", "--minutes", "0")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(command, "tower_loss", interrupted)
        code, _, err = run("state")
    assert code == 130
    assert err.count("\n") == 1
    assert json.loads((tmp_path / "state" / "settings.json").read_text())["seed"] == 0
    assert run("state")[0] == 0


def test_measuring_what_is_not_trained_is_one_line(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["measure", "--state", str(tmp_path)])
    threads = torch.get_num_threads()
    assert measure.main() == 1
    torch.set_num_threads(threads)
    assert capsys.readouterr().err.endswith("tower.pt isn't there: nothing has been trained yet\n")
