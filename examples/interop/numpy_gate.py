"""Gate a camera with NumPy alone: send on only frames in which something changed.

A bright square crosses a still, noisy picture and stops. No torch is imported.

Run: python examples/interop/numpy_gate.py
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from stc_numpy import frame_difference

PATCH, CHANGED = 16, 0.1


def main() -> None:
    generator = np.random.default_rng(0)
    sent = frame(generator, left=0)
    for number, left in enumerate([0, 0, 40, 80, 80, 80], start=1):
        current = frame(generator, left)
        difference = frame_difference(current, sent, PATCH)  # float32 [h, w], 0 to 1
        changed = int((difference > CHANGED).sum())
        print(f"frame {number}: {changed} of {difference.size} patches changed", end="")
        print(", sent" if changed else "")
        if changed:
            sent = current
    print(f"torch imported: {'torch' in sys.modules}")


def frame(generator: np.random.Generator, left: int) -> NDArray[np.uint8]:
    """Return a picture, uint8 [96, 128, 3], with a square whose left edge is at `left`."""
    picture = generator.integers(60, 70, (96, 128, 3), dtype=np.uint8)
    picture[32:64, left : left + 32] = 250
    return picture


if __name__ == "__main__":
    main()
