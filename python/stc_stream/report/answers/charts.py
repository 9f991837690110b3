"""How the memories of a stream grow, as SVG that takes its ink from the page around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stc_stream.evaluate.answers import ChunkRun
from stc_stream.report.answers.run import AnswersRun
from stc_stream.report.svg import COMPRESSED, CUT, DENSE, inline_chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Values = NDArray[np.float64]
_MIB = 2**20


def growth(run: AnswersRun, place: int) -> tuple[Values, Values, Values]:
    """Return of one way the frames taken in after each chunk, and bytes on device and on host."""
    fed, device, host = [0], [0], [0]
    for own in _runs(run, place):
        fed.append(own.stats.frames)
        device.append(own.stats.bytes_device)
        host.append(own.stats.bytes_host)
    return np.array(fed, np.float64), np.array(device, np.float64), np.array(host, np.float64)


def all_kept(run: AnswersRun) -> tuple[Values, Values] | None:
    """Return what the full memory would hold of the compressed stream: frames, bytes.

    That is the tokens kept so far, and those of the prompt, by the bytes of a token in the dense
    memory. None where the dense one took nothing in.
    """
    dense, compressed = _runs(run, 0), _runs(run, 1)
    # A model of temporal patches writes nothing until it has two frames.
    held = next((place for place, own in enumerate(dense) if own.stats.tokens_held), None)
    if held is None or not compressed:
        return None
    token = dense[held].stats.bytes_device / dense[held].stats.tokens_held
    prompt = dense[held].stats.tokens_held - sum(own.kept for own in dense[: held + 1])
    kept = np.cumsum([own.kept for own in compressed]) + prompt
    fed = np.array([0, *(own.stats.frames for own in compressed)], np.float64)
    return fed, np.array([0, *(token * kept)], np.float64)


def cache_chart(run: AnswersRun) -> str:
    """Return the bytes held over frames, dense and compressed, as an inline SVG."""

    def draw(axes: Axes) -> None:
        frames, device, _ = growth(run, 0)
        axes.plot(frames, device / _MIB, color=DENSE, linewidth=1.8)
        frames, device, host = growth(run, 1)
        reference = all_kept(run)
        if run.forgets and reference is not None:
            axes.plot(
                reference[0], reference[1] / _MIB, color=CUT, linewidth=1.4, linestyle=(0, (4, 3))
            )
        axes.plot(frames, device / _MIB, color=COMPRESSED, linewidth=1.8)
        if host.any():
            axes.plot(frames, host / _MIB, color=COMPRESSED, linewidth=1.4, linestyle=(0, (4, 3)))
        axes.set_ylim(bottom=0)
        axes.set_ylabel("MiB")

    return inline_chart(draw, 3.1, "Bytes of keys and values held over the frames", "frames")


def _runs(run: AnswersRun, place: int) -> list[ChunkRun]:
    return [own for chunk in run.chunks if (own := chunk.runs[place]) is not None]
