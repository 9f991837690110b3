"""Is it worth it here: a tower dense and with a Cacher, timed in turns on this machine."""

from __future__ import annotations

from stc_stream.evaluate.bench.engine import Progress, TowerBench, WrongResult
from stc_stream.evaluate.bench.plan import BenchConfig, first_layers, fitting_layers
from stc_stream.evaluate.bench.results import BenchRun, Dense, RatioFidelity, Setting

__all__ = [
    "BenchConfig",
    "BenchRun",
    "Dense",
    "Progress",
    "RatioFidelity",
    "Setting",
    "TowerBench",
    "WrongResult",
    "first_layers",
    "fitting_layers",
]
