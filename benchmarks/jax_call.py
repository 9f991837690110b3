"""What JAX adds to a call of `select_dynamic` on the CPU, and what JAX takes by itself, in turns.

    python -m benchmarks.jax_call --json benchmarks/results/jax-call.json

Ours from torch, from JAX arrays (DLPack), from the same memory as NumPy arrays (`stc_numpy`, one
core) and under ``jax.jit`` (a callback); beside them the op written in JAX and jitted. The table
holds the shortest of the rounds, for a machine that is not quiet; the file, written with
``--json``, their medians and quartiles too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

import stc_kernels
import stc_kernels.interop.jax as stc_jax
import stc_numpy
from benchmarks.pages import jax_table
from benchmarks.results import kept
from stc_stream.evaluate.timing import Turns, WallClock

SHAPES = ((1, 49, 64), (1, 729, 1152), (16, 729, 1152))
ROUNDS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the times to this file")
    path = parser.parse_args().json
    sizes = {"x".join(map(str, shape)): times(*shape) for shape in SHAPES}
    print(*jax_table(sizes), sep="\n")
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
    arrays = np.asarray(current), np.asarray(reference)
    k = tokens // 4
    choose = partial(stc_jax.select_dynamic, k=k)
    compiled, alone = jax.jit(choose), jax.jit(partial(in_jax, k=k))
    sides = {
        "torch": lambda: stc_kernels.select_dynamic(*ours, k),
        "arrays": lambda: jax.block_until_ready(choose(current, reference)),
        "numpy": lambda: stc_numpy.select_dynamic(*arrays, k),
        "jit": lambda: jax.block_until_ready(compiled(current, reference)),
        "jax": lambda: jax.block_until_ready(alone(current, reference)),
    }
    expected = sides["torch"]()
    for name, side in sides.items():
        index, slot = side()
        # JAX sums in another order: two tokens as similar but for rounding may change places.
        least = 1 if name != "jax" else 0.99
        same = (np.asarray(slot) >= 0) == (expected[1].numpy() >= 0)
        if index.shape != (frames, k) or same.mean() < least:
            raise SystemExit(f"{name} chooses other tokens than torch: nothing to time")
    turns = Turns(sides, WallClock())
    for _ in range(ROUNDS):
        turns.run_round()
    return {name: kept(timing) for name, timing in turns.timings().items()}


def in_jax(current: jax.Array, reference: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Return the op as it is written in JAX, with as few passes over the tokens as that allows."""
    norms = jnp.linalg.norm(current, axis=-1) * jnp.linalg.norm(reference, axis=-1)
    similarity = (current * reference).sum(-1) / jnp.maximum(norms, 1e-16)
    index = jnp.sort(jax.lax.top_k(-similarity, k)[1], axis=1)
    slot = jnp.full(similarity.shape, -1, jnp.int32)
    rows = jnp.arange(index.shape[0])[:, None]
    return index, slot.at[rows, index].set(jnp.arange(k, dtype=jnp.int32))


if __name__ == "__main__":
    main()
