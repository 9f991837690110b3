"""Train the small video LLM from nothing: tower, then LLM on its features, then a second LLM.

    python -m benchmarks.accuracy.train --state build/accuracy

Everything follows from the seed and the numbers of steps. The state is saved every two minutes;
the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.accuracy.llm import llm_loss, make_features, training_batch
from benchmarks.accuracy.loop import OutOfTime, train
from benchmarks.accuracy.model import build_model
from benchmarks.accuracy.tower import Heads, patch_accuracy, tower_loss

TOWER_STEPS = 1400
LLM_STEPS = 7000
CLIPS = 4000


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    stop_at = time.monotonic() + 60 * arguments.minutes
    arguments.state.mkdir(parents=True, exist_ok=True)
    try:
        _train(arguments, stop_at)
    except OutOfTime as stopped:
        print(stopped)


def _train(arguments: argparse.Namespace, stop_at: float) -> None:
    seed, state = arguments.seed, arguments.state
    model = build_model(seed)
    core = model.model
    torch.manual_seed(seed)
    heads = Heads()
    train(
        "tower",
        [*core.vision_tower.parameters(), *core.multi_modal_projector.parameters(), *heads.parameters()],
        lambda step: tower_loss(model, heads, step, seed),
        arguments.tower_steps,
        1e-3,
        state / "tower.pt",
        stop_at,
    )
    shown, every = patch_accuracy(model, heads, 40)
    print(f"validation patches told right: {shown:.1%} of those that show something, {every:.1%}")
    features = make_features(model, arguments.clips, state / "features.npy")
    for name, gaps in (("dense", False), ("gaps", True)):
        if arguments.only not in (None, name):
            continue
        llm = build_model(seed)
        llm.load_state_dict(model.state_dict())
        learned = [*llm.model.language_model.parameters(), *llm.lm_head.parameters(), llm.model.image_newline]
        steps = arguments.llm_steps
        train(
            name,
            learned,
            lambda step: llm_loss(llm, training_batch(features, step, steps, seed, gaps)),
            steps,
            1e-3,
            state / f"{name}.pt",
            stop_at,
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--state", type=Path, default=Path("build/accuracy"), help="folder of the state")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop and save after")
    parser.add_argument("--tower-steps", type=int, default=TOWER_STEPS)
    parser.add_argument("--llm-steps", type=int, default=LLM_STEPS)
    parser.add_argument("--clips", type=int, default=CLIPS, help="clips whose features are kept")
    parser.add_argument("--only", choices=("dense", "gaps"), help="train one of the two LLMs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
