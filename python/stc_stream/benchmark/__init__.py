"""Is it worth it here: a tower dense and with a Cacher, timed in turns on this machine."""

from __future__ import annotations

from stc_stream.benchmark.clip import Clip, bench_clip
from stc_stream.benchmark.engine import Progress, TowerBench, WrongResult
from stc_stream.benchmark.plan import BenchConfig, first_layers, fitting_layers
from stc_stream.benchmark.results import BenchRun, Dense, RatioFidelity, Setting

__all__ = [
    "BenchConfig",
    "BenchRun",
    "Clip",
    "Dense",
    "Progress",
    "RatioFidelity",
    "Setting",
    "TowerBench",
    "WrongResult",
    "bench_clip",
    "first_layers",
    "fitting_layers",
]
