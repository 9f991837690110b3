"""How many tokens a share comes to."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

_LARGEST_DENOMINATOR = 10**7


@lru_cache(typed=True)
def share_of(count: int, ratio: float) -> int:
    """Return max(1, floor(count · ratio)), the ratio being the decimal that was written.

    0.29 of 100 is 29, though the nearest double to 0.29 times 100 is less. A ratio that was
    computed is the simplest fraction that comes as near: 1 / 3 of 9 is 3.
    """
    return max(1, math.floor(count * _written(ratio)))


def truncated_share_of(count: int, ratio: float) -> int:
    """Return max(1, int(count · ratio)), the double that Python makes of them, cut off.

    0.29 of 100 is 28. The published code counts so.
    """
    return max(1, int(count * ratio))


@lru_cache(typed=True)
def _written(ratio: float) -> Fraction:
    # A float32 is printed in its own digits, which its value as a double would not give.
    return Fraction(str(ratio)).limit_denominator(_LARGEST_DENOMINATOR)
