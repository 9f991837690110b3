"""Conditions on sizes that a tracer may not know, such as the number of frames that a mask chooses.

A plain ``bool`` is answered as it is; of sizes that a tracer has an example of, with a guard.
"""

from __future__ import annotations

import torch


def holds(condition: bool | torch.SymBool) -> bool:
    """Return whether a condition holds; one that can't be decided is asserted at run time."""
    if not isinstance(condition, torch.SymBool):
        return condition
    from torch.fx.experimental.symbolic_shapes import guard_or_true

    if not guard_or_true(condition):
        return False
    torch._check(condition)
    return True


def known(condition: bool | torch.SymBool) -> bool:
    """Return whether a condition is sure to hold."""
    if not isinstance(condition, torch.SymBool):
        return condition
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return bool(guard_or_false(condition))
