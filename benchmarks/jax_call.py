"""What JAX adds to a call on the CPU: torch's own call, on arrays, under ``jax.jit``, in turns.

    python -m benchmarks.jax_call --json benchmarks/results/jax-call.json

The table holds the shortest of the rounds, for a machine that is not quiet; the file, written with
``--json``, their medians and quartiles too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from functools import partial
from pathlib import Path

import jax
import torch

import stc_kernels
import stc_kernels.interop.jax as stc_jax
from benchmarks.timers import Turns, WallClock

SHAPES = ((1, 49, 64), (1, 729, 1152), (16, 729, 1152))
ROUNDS = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the times to this file")
    path = parser.parse_args().json
    sizes = {"x".join(map(str, shape)): times(*shape) for shape in SHAPES}
    print("| tokens [F, T, C] | torch | on arrays | under jit |\n|---|---|---|---|")
    for name, sides in sizes.items():
        print(f"| {name} |", " | ".join(f"{1e3 * t['best']:.2f} ms" for t in sides.values()), "|")
    if path is not None:
        machine = {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": f"{platform.system()} {platform.machine()}",
            "torch": torch.__version__,
            "jax": jax.__version__,
            "ops": stc_kernels.implementation("select_dynamic"),
            "load_at_end": round(os.getloadavg()[0], 1),
        }
        text = json.dumps({"op": "select_dynamic", "machine": machine, "times": sizes}, indent=1)
        path.write_text(text + "\n", encoding="utf-8")


def times(frames: int, tokens: int, channels: int) -> dict[str, dict[str, float]]:
    """Return the times of each side of `select_dynamic` on random float32 tokens."""
    current, reference = (
        jax.random.normal(key, (frames, tokens, channels))
        for key in jax.random.split(jax.random.key(0))
    )
    ours = torch.from_dlpack(current), torch.from_dlpack(reference)
    choose = partial(stc_jax.select_dynamic, k=tokens // 4)
    compiled = jax.jit(choose)
    expected = stc_kernels.select_dynamic(*ours, tokens // 4)[0].tolist()
    for function in (choose, compiled):
        if function(current, reference)[0].tolist() != expected:
            raise SystemExit("JAX and torch disagree: nothing to time")
    sides = {
        "torch": lambda: stc_kernels.select_dynamic(*ours, tokens // 4),
        "arrays": lambda: jax.block_until_ready(choose(current, reference)),
        "jit": lambda: jax.block_until_ready(compiled(current, reference)),
    }
    turns = Turns(sides, WallClock())
    for _ in range(ROUNDS):
        turns.lap()
    return {name: asdict(found) for name, found in turns.times(ROUNDS).items()}


if __name__ == "__main__":
    main()
