"""matplotlib as it comes: not as a notebook's environment or a user's matplotlibrc have it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def new_figure(inches: tuple[float, float], style: Mapping[str, Any]) -> Iterator[Figure]:
    """Make a figure to be drawn and saved inside, in matplotlib's own style but for `style`."""
    with _matplotlib().rc_context():
        _matplotlib().rcdefaults()
        _matplotlib().rcParams.update(style)
        from matplotlib.figure import Figure

        yield Figure(figsize=inches, layout="constrained")


def colours(name: str, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the colours [.., 3] that a colour map gives to values of 0 to 1."""
    drawn: NDArray[np.uint8] = np.rint(255 * _matplotlib().colormaps[name](values)[..., :3]).astype(
        np.uint8
    )
    return drawn


def _matplotlib() -> Any:
    # It refuses to be imported where MPLBACKEND names what isn't installed; no window is needed.
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
        import matplotlib.figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return matplotlib
