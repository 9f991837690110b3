"""Prune the tokens of a JAX model: on arrays without a copy, and inside ``jax.jit``.

Run: python examples/interop/jax_prune.py
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

import stc_kernels.interop.jax as stc

FRAMES, TOKENS, WIDTH, KEPT = 4, 196, 256, 64


def main() -> None:
    tokens_key, weight_key = jax.random.split(jax.random.key(0))
    features = jax.random.normal(tokens_key, (FRAMES, TOKENS, WIDTH))
    weight = jax.random.normal(weight_key, (WIDTH, WIDTH)) / WIDTH**0.5

    kept, index = stc.prune_tokens(features @ weight, k=KEPT)  # [F, k, D] and int32 [F, k]
    print(f"arrays: {kept.shape} {kept.dtype}, first frame keeps {index[0, :5].tolist()}, …")

    @jax.jit
    def project_and_prune(features: jax.Array) -> tuple[jax.Array, jax.Array]:
        return stc.prune_tokens(features @ weight, k=KEPT)

    compiled_kept, compiled_index = project_and_prune(features)
    print(f"jit:    the same tokens: {bool((compiled_index == index).all())}")
    print(f"        the same values: {bool(jnp.allclose(compiled_kept, kept))}")


if __name__ == "__main__":
    main()
