"""The results that are kept: what runs of `pytest benchmarks` came to, on one machine."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from stc_stream.evaluate.timing import Timing

_NOT_PLAIN = {"ours", "op", "function", "empty", "allocate", "read", "copy"}
_KEPT = ("median", "low", "high", "best", "rounds", "calls")
_ABOUT = ("op", "model", "frames", "tokens", "channels", "k", "dtype", "device", "default")


@dataclass(frozen=True)
class Result:
    """One benchmark's sides.

    Attributes:
        name: the test and its parameters.
        kind: ``op``, ``overhead`` or ``tower``.
        sides: seconds a call of each side, by name; ours is ``ours``, or ``op`` for an overhead;
            ``read`` and ``copy`` are limits, and the others of an op or a tower are plain PyTorch.
        about: op, model, sizes, dtype and device; for a tower what its test says of it.
        bytes: fewest bytes the op can move; 0 if not an op.
        read_bytes: bytes that one read reads.
        copy_bytes: bytes that the copy reads and writes.
        ratios: each side's median over ours, taken within a run and then the median of the runs:
            steadier than the ratio of the medians, since a run's sides saw the same machine.
    """

    name: str
    kind: str
    sides: dict[str, Timing]
    about: dict[str, Any] = field(default_factory=dict)
    bytes: int = 0
    read_bytes: int = 0
    copy_bytes: int = 0
    ratios: dict[str, float] = field(default_factory=dict)

    def times_faster_than(self, side: str) -> float | None:
        """Return the time of `side` over ours; None if that side was not timed."""
        return self._times(side) if side in self.sides else None

    @property
    def plain(self) -> list[str]:
        """The sides that are plain PyTorch."""
        return [side for side in self.sides if side not in _NOT_PLAIN]

    @property
    def fastest(self) -> str:
        """The plain way of the least time: what ours is held against first."""
        return min(self.plain, key=self._times)

    @property
    def ours(self) -> float:
        """Seconds a call of ours, the median."""
        return self.sides["op" if self.kind == "overhead" else "ours"].median

    @property
    def reads(self) -> float:
        """How often the op's inputs could have been read in our time."""
        return 1 / self._times("read")

    @property
    def rate(self) -> float:
        """Our bytes a second, of the fewest bytes."""
        return self.bytes / self.ours

    @property
    def percent_of_read(self) -> float:
        """Our bytes a second in percent of those of one read."""
        return 100 * self.bytes / self.read_bytes * self._times("read")

    @property
    def percent_of_copy(self) -> float:
        """Our bytes a second in percent of those of a copy, read and written."""
        return 100 * self.bytes / self.copy_bytes * self._times("copy")

    @property
    def overhead(self) -> float:
        """Seconds of a call on almost nothing over a call of an op that does nothing."""
        return self.ours - self.sides["empty"].median

    def _times(self, side: str) -> float:
        return self.ratios.get(side, self.sides[side].median / self.ours)


@dataclass(frozen=True)
class Results:
    """All results of a machine, with what was used to get them."""

    machine: dict[str, Any]
    runs: int
    note: str
    command: str
    results: tuple[Result, ...]

    def save(self, path: Path) -> None:
        """Write them as JSON, to four digits: more than a time holds."""
        content = asdict(self)
        for result, made_of in zip(content["results"], self.results, strict=True):
            result["sides"] = {name: kept(timing) for name, timing in made_of.sides.items()}
            for side in result["sides"].values():
                for name in ("median", "low", "high", "best"):
                    side[name] = float(f"{side[name]:.4g}")
            result["ratios"] = {k: float(f"{v:.4g}") for k, v in result["ratios"].items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(path: Path) -> Results:
    """Read what `Results.save` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    results = []
    for result in content.pop("results"):
        sides = {name: Timing(**side) for name, side in result.pop("sides").items()}
        results.append(Result(sides=sides, **result))
    return Results(results=tuple(results), **content)


def kept(timing: Timing) -> dict[str, Any]:
    """Return what a file of results has of a timing, in seconds a call."""
    return {name: getattr(timing, name) for name in _KEPT}


def from_runs(paths: Sequence[Path], note: str = "", command: str = "") -> Results:
    """Read one or more JSON files of pytest-benchmark; of several runs the medians are kept.

    Args:
        paths: files written by ``pytest benchmarks --benchmark-json``, of one machine.
        note: what a reader should know about the circumstances.
        command: how to run them again.
    """
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    by_name: dict[str, list[Result]] = {}
    for run in runs:
        for benchmark in run["benchmarks"]:
            result = _result(benchmark)
            by_name.setdefault(result.name, []).append(result)
    merged = tuple(_merged(results) for results in by_name.values())
    machine = dict(runs[0]["machine_info"])
    for load_at in ("load_at_start", "load_at_end"):
        machine[load_at] = [run["machine_info"].get(load_at) for run in runs]
    return Results(machine, len(runs), note, command, merged)


def _result(benchmark: dict[str, Any]) -> Result:
    extra = benchmark["extra_info"]
    name = benchmark["name"].removeprefix("test_")
    if "sides" not in extra:
        return _tower(name, benchmark)
    sizes = {key: extra.get(key, 0) for key in ("bytes", "read_bytes", "copy_bytes")}
    if extra["kind"] == "op":
        name = name.removeprefix("op[").removesuffix("]")
    about = {key: extra[key] for key in _ABOUT if key in extra}
    sides = {side: Timing(**times) for side, times in extra["sides"].items()}
    return Result(name, extra["kind"], sides, about, **sizes)


def _tower(name: str, benchmark: dict[str, Any]) -> Result:
    # Its test keeps the dense sides' medians alone; ours has all of pytest-benchmark's statistics.
    extra, stats = dict(benchmark["extra_info"]), benchmark["stats"]
    rounds = stats["rounds"]
    ours = Timing(stats["median"], stats["q1"], stats["q3"], stats["min"], rounds, 1)
    sides = {"ours": ours}
    for side in ("dense", "dense_compiled"):
        if f"{side}_ms" in extra:
            median = extra.pop(f"{side}_ms") / 1000
            sides[side] = Timing(*[median] * 4, rounds=rounds, calls=1)
    return Result(name, "tower", sides, extra)


def _merged(results: list[Result]) -> Result:
    first = results[0]
    sides = {name: _merged_times([run.sides[name] for run in results]) for name in first.sides}
    ratios = {
        name: statistics.median(run.sides[name].median / run.ours for run in results)
        for name in sides
    }
    return replace(first, sides=sides, ratios=ratios)


def _merged_times(runs: list[Timing]) -> Timing:
    def middle(name: str) -> float:
        return statistics.median(getattr(run, name) for run in runs)

    best = min(run.best for run in runs)
    rounds = sum(run.rounds for run in runs)
    return Timing(middle("median"), middle("low"), middle("high"), best, rounds, runs[0].calls)
