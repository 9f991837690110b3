"""Is it worth it here: a tower dense, with a Cacher and by other methods, timed in turns."""

from __future__ import annotations

from stc_stream.evaluate.bench.engine import Progress, TowerBench, WrongResult
from stc_stream.evaluate.bench.plan import BenchConfig, first_layers, fitting_layers
from stc_stream.evaluate.bench.results import (
    BenchRun,
    Compared,
    Dense,
    MethodFidelity,
    MethodTiming,
    RatioFidelity,
    Setting,
)

__all__ = [
    "BenchConfig",
    "BenchRun",
    "Compared",
    "Dense",
    "MethodFidelity",
    "MethodTiming",
    "Progress",
    "RatioFidelity",
    "Setting",
    "TowerBench",
    "WrongResult",
    "first_layers",
    "fitting_layers",
]
