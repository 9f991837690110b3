"""The speeds that the ops are to reach, and which of them a machine's results miss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.results import Result, Results

LARGEST_OVERHEAD = 5e-6


@dataclass(frozen=True)
class Verdict:
    """One target held against one result.

    Attributes:
        result: name of the result.
        target: in words.
        figure: what was reached, in the target's unit.
        met: whether that is enough.
    """

    result: str
    target: str
    figure: str
    met: bool


def verdicts(results: Results) -> list[Verdict]:
    """Return every target that the results say something about, met or missed."""
    found: list[Verdict] = []
    for result in results.results:
        if result.kind == "overhead":
            found.append(_overhead(result))
        elif result.kind == "op" and result.about["default"]:
            found.extend(_of_op(result))
    return found


def misses(results: Results) -> list[Verdict]:
    """Return the targets that are not met."""
    return [verdict for verdict in verdicts(results) if not verdict.met]


_Rule = Callable[[Result], Verdict | None]


def _of_op(result: Result) -> Iterable[Verdict]:
    rules = (_GPU if result.about["device"] == "cuda" else _CPU).get(result.about["op"], ())
    return [verdict for rule in rules if (verdict := rule(result)) is not None]


def _faster(
    side: str,
    times: float,
    fewest_frames: int = 1,
    most_frames: int = 2**31,
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
) -> _Rule:
    def rule(result: Result) -> Verdict | None:
        figure = result.times_faster_than(side)
        if figure is None or not fewest_frames <= result.about["frames"] <= most_frames:
            return None
        if result.about["dtype"] not in dtypes:
            return None
        return Verdict(result.name, f"≥ {times:g} × {side}", f"{figure:.2f} ×", figure >= times)

    return rule


def _reads(most: float, fewest_frames: int) -> _Rule:
    def rule(result: Result) -> Verdict | None:
        if result.about["frames"] < fewest_frames:
            return None
        reads = result.reads
        return Verdict(result.name, f"≤ {most:g} × one read", f"{reads:.2f} ×", reads <= most)

    return rule


def _copy(percent: float, fewest_frames: int) -> _Rule:
    def rule(result: Result) -> Verdict | None:
        if result.about["frames"] < fewest_frames:
            return None
        figure = result.percent_of_copy
        target = f"≥ {percent:g}% of copy bandwidth"
        return Verdict(result.name, target, f"{figure:.0f}%", figure >= percent)

    return rule


def _overhead(result: Result) -> Verdict:
    target = f"≤ {LARGEST_OVERHEAD * 1e6:g} µs over an empty op"
    met = result.overhead <= LARGEST_OVERHEAD
    return Verdict(result.name, target, f"{result.overhead * 1e6:.1f} µs", met)


_ROWS_MOVED = ("gather_tokens", "merge_tokens", "topk_gather")
_CPU: dict[str, tuple[_Rule, ...]] = {
    "select_dynamic": (
        _faster("eager", 3, most_frames=15, dtypes=("float32",)),
        _faster("eager", 8, fewest_frames=16, dtypes=("float32",)),
        _faster("eager", 4, dtypes=("bfloat16",)),
        _faster("compiled", 1.5),
        _reads(2.5, fewest_frames=16),
    ),
    "prune_tokens": (
        _faster("eager", 10, most_frames=15, dtypes=("float32",)),
        _faster("eager", 20, fewest_frames=16, dtypes=("float32",)),
        _faster("eager", 8, dtypes=("bfloat16",)),
        _faster("compiled", 3),
        _reads(4, fewest_frames=16),
    ),
    **{op: (_faster("eager", 1.5),) for op in _ROWS_MOVED},
}
_GPU: dict[str, tuple[_Rule, ...]] = {
    "select_dynamic": (
        _faster("eager", 5),
        _faster("compiled", 2),
        _copy(70, fewest_frames=64),
    ),
    "prune_tokens": (_faster("eager", 10), _faster("compiled", 3)),
    **{op: (_copy(70, fewest_frames=64),) for op in _ROWS_MOVED},
}
