"""Choose tokens of CuPy arrays on a GPU: torch sees CuPy's memory, and CuPy the results.

Run: python examples/interop/cupy_select.py
"""

from __future__ import annotations

import cupy

from stc_kernels.interop import dlpack as stc


def main() -> None:
    generator = cupy.random.default_rng(0)
    reference = generator.standard_normal((1, 729, 1152), dtype=cupy.float32)
    current = reference.copy()
    current[:, 100:120] += 1.0  # twenty tokens have changed

    index, slot = stc.select_dynamic(current, reference, k=20)  # int64 [F, k], int32 [F, T]
    print(f"{type(index).__module__}: tokens {int(index.min())} to {int(index.max())} changed")
    print(f"{int((slot >= 0).sum())} of {slot.size} tokens are recomputed")


if __name__ == "__main__":
    main()
