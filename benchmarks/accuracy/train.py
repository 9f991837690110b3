"""Train the small video LLM from nothing: the tower, then an LLM on its features, then a second.

    python -m benchmarks.accuracy.train --state build/accuracy

The first LLM, "dense", sees whole frames; the second, "gaps", sees a random part of each. All of
it follows from the seed and the numbers of steps. The state is saved every two minutes; the same
command goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlavaOnevisionForConditionalGeneration

from benchmarks.accuracy.features import Features, make_features
from benchmarks.accuracy.llm import llm_loss, training_batch
from benchmarks.accuracy.loop import OutOfTime, StateError, train, write_whole
from benchmarks.accuracy.model import build_model, llm_weights, tower_weights
from benchmarks.accuracy.tower import build_heads, patch_accuracy, tower_loss

TOWER_STEPS = 1400
LLM_STEPS = 7000
CLIPS = 4000
RATE = 1e-3
VALIDATION_CLIPS = 40


def main() -> int:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    stop_at = time.monotonic() + 60 * arguments.minutes
    try:
        _keep_settings(arguments)
        _train(arguments, stop_at)
    except OutOfTime as stopped:
        print(stopped)
    except StateError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run again to go on from what was saved last", file=sys.stderr)
        return 130
    return 0


def _train(arguments: argparse.Namespace, stop_at: float) -> None:
    seed, state = arguments.seed, arguments.state
    model, heads = build_model(seed), build_heads(seed)
    train(
        "tower",
        [*tower_weights(model), *heads.parameters()],
        lambda step: tower_loss(model, heads, step, seed),
        arguments.tower_steps,
        RATE,
        state / "tower.pt",
        stop_at,
    )
    shown, every = patch_accuracy(model, heads, VALIDATION_CLIPS)
    print(f"validation patches told right: {shown:.1%} of those that show something, {every:.1%}")
    features = make_features(model, arguments.clips, state / "features.npy", stop_at)
    for name in (arguments.only,) if arguments.only else ("dense", "gaps"):
        _train_llm(name, model, features, arguments, stop_at)


def _train_llm(
    name: str,
    tower: LlavaOnevisionForConditionalGeneration,
    features: Features,
    arguments: argparse.Namespace,
    stop_at: float,
) -> None:
    seed, steps = arguments.seed, arguments.llm_steps
    model = build_model(seed)
    model.load_state_dict(tower.state_dict())
    train(
        name,
        llm_weights(model),
        lambda step: llm_loss(
            model, training_batch(features, step, steps, seed, gaps=name == "gaps")
        ),
        steps,
        RATE,
        arguments.state / f"{name}.pt",
        stop_at,
    )


def _keep_settings(arguments: argparse.Namespace) -> None:
    """Note what the training depends on, or compare it with what was noted when it began."""
    arguments.state.mkdir(parents=True, exist_ok=True)
    file = arguments.state / "settings.json"
    names = ("seed", "tower_steps", "llm_steps", "clips")
    settings = {name: getattr(arguments, name) for name in names}
    if not file.exists():
        text = json.dumps(settings)
        write_whole(file, lambda partial: partial.write_text(text))
        return
    try:
        began = json.loads(file.read_text())
    except ValueError as error:
        raise StateError(f"{file} can't be used; delete it if the options are right") from error
    if began != settings:
        raise StateError(f"{arguments.state} was begun with {began}, not with {settings}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--state", type=Path, default=Path("build/accuracy"), help="folder of the state"
    )
    parser.add_argument("--seed", type=_at_least(0), default=0, help="of everything random")
    parser.add_argument("--threads", type=_at_least(1), default=1, help="of PyTorch")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop and save after")
    parser.add_argument("--tower-steps", type=_at_least(1), default=TOWER_STEPS)
    parser.add_argument("--llm-steps", type=_at_least(1), default=LLM_STEPS)
    parser.add_argument(
        "--clips", type=_at_least(1), default=CLIPS, help="clips that the LLMs learn from"
    )
    parser.add_argument("--only", choices=("dense", "gaps"), help="train one LLM of the two")
    return parser.parse_args()


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, but is {text}")
        return value

    return number


if __name__ == "__main__":
    sys.exit(main())
