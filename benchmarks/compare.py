"""Show what became slower, or faster, between two results of one machine.

    python benchmarks/compare.py BASE.json HEAD.json [--threshold 0.1]

The files are what `benchmarks.report --save` (or `make bench`) writes. A change counts if it is
larger than the threshold and than the noise of both results: how far the quartiles of ours lie
from their median. What the other sides did (PyTorch's own code, one read, the dense tower) between
the two is the machine's doing, so ours is judged after dividing by their median change.
Exit code 1 if anything became slower, 2 if the files cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Side = dict[str, Any]
THRESHOLD = 0.10


@dataclass(frozen=True)
class Change:
    """How one benchmark changed.

    Attributes:
        name: of the benchmark.
        base: our median before, in seconds.
        head: our median after.
        machine: what the machine's own speed did to a time, 1.0 for nothing.
        noise: how large a relative change means nothing.
    """

    name: str
    base: float
    head: float
    machine: float
    noise: float

    @property
    def ratio(self) -> float:
        """Our time after over our time before, the machine's change taken out."""
        return self.head / self.base / self.machine

    def is_slower(self, threshold: float) -> bool:
        """Return whether ours became slower by more than threshold and noise."""
        return self.ratio > 1 + max(threshold, self.noise)

    def is_faster(self, threshold: float) -> bool:
        """Return whether ours became faster by more than threshold and noise."""
        return 1 / self.ratio > 1 + max(threshold, self.noise)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the changes and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="compare.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("base", type=Path, metavar="BASE.json")
    parser.add_argument("head", type=Path, metavar="HEAD.json")
    parser.add_argument(
        "--threshold",
        type=_positive,
        default=THRESHOLD,
        help="smallest relative change that counts (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        base, head = _sides(options.base), _sides(options.head)
        found = changes(base, head)
    except ValueError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    slower = [change for change in found if change.is_slower(options.threshold)]
    faster = [change for change in found if change.is_faster(options.threshold)]
    for heading, group in (("slower", slower), ("faster", faster)):
        for change in sorted(group, key=lambda change: -abs(math.log(change.ratio))):
            print(f"{heading}: {_line(change)}")
    for heading, names in (("gone", base.keys() - head.keys()), ("new", head.keys() - base.keys())):
        for name in sorted(names):
            print(f"{heading}: {name}")
    same = len(found) - len(slower) - len(faster)
    print(f"{len(found)} compared: {len(slower)} slower, {len(faster)} faster, {same} as before")
    return 1 if slower else 0


def changes(base: dict[str, dict[str, Side]], head: dict[str, dict[str, Side]]) -> list[Change]:
    """Return the change of every benchmark that both results have.

    Args:
        base: each benchmark's sides before, by name.
        head: the same after.

    Raises:
        ValueError: they have no benchmark in common.
    """
    common = [name for name in base if name in head]
    if not common:
        raise ValueError("the two results have no benchmark in common")
    return [_change(name, base[name], head[name]) for name in common]


def _change(name: str, base: dict[str, Side], head: dict[str, Side]) -> Change:
    before, after = (next(sides[side] for side in _OURS if side in sides) for sides in (base, head))
    controls = [side for side in base if side in head and side not in _OURS + _ALSO_OURS]
    drift = [head[side]["median"] / base[side]["median"] for side in controls]
    # Quartiles lie two thirds of a standard deviation off: three times that is two of them.
    noise = 3 * math.hypot(_spread(before), _spread(after))
    machine = statistics.median(drift) if drift else 1.0
    return Change(name, before["median"], after["median"], machine, noise)


_OURS = ("ours", "op")
_ALSO_OURS = ("function", "empty")


def _spread(times: Side) -> float:
    return float((times["high"] - times["low"]) / 2 / times["median"])


def _sides(path: Path) -> dict[str, dict[str, Side]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = {result["name"]: result["sides"] for result in content["results"]}
        if all(any(side in sides for side in _OURS) for sides in found.values()):
            return found
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is not a result that `python -m benchmarks.report --save` wrote")


def _line(change: Change) -> str:
    return (
        f"{change.name}: {1e3 * change.base:.4g} ms -> {1e3 * change.head:.4g} ms, "
        f"{change.ratio:.2f} × (machine {change.machine:.2f} ×, noise {100 * change.noise:.0f}%)"
    )


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, but is {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
