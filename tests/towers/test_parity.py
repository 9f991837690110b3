"""Towers of every family with a Cacher against algorithm.md said plainly."""

from __future__ import annotations

from itertools import count, product

import pytest
import torch
from towers.families import Family, Frame, joined
from towers.statement import Statement

from stc_stream import CacherConfig, attach_cacher

STREAMS = ["door", "yard", "door", "door", "yard", "yard", "door", "yard"]
"""Frames of two interleaved streams, of two shapes where frames have shapes of their own."""

CLEAR = 1e-5
"""How far apart the last chosen and the first reused token must be for float32 to agree."""


def stated(family: Family, config: CacherConfig, streams: list[str], seed: int):
    """Return a tower, frames, and what the statement gives for them.

    Drawn anew until every choice is clear, so that none depends on how float32 rounds.
    """
    for draw in count(seed):
        tower, frames = family.tower(draw), family.frames(streams, draw)
        statement = Statement(family, tower, config)
        outputs = [statement.run(*row) for row in zip(frames, streams, strict=True)]
        if statement.margin > CLEAR:
            break
    return tower, frames, outputs, statement


def run(
    family: Family,
    tower: torch.nn.Module,
    config: CacherConfig,
    frames: list[Frame],
    streams: list[str],
    sizes: list[int],
):
    """Return what the tower gives with a Cacher, in batches of the given sizes."""
    assert sum(sizes) == len(streams)
    outputs = []
    with attach_cacher(tower, config) as cacher:
        for rows in torch.arange(len(streams)).split(sizes):
            with cacher.streams([streams[row] for row in rows]):
                outputs.append(family.run(tower, [frames[row] for row in rows]))
        stats = cacher.stats
    return joined(outputs), stats


def assert_same(ours, expected):
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            ours[name].double(), tensor.double(), rtol=1e-5, atol=1e-5, msg=name
        )


@pytest.mark.parametrize(
    ("interval", "ratio"),
    [(3, 0.3)]
    + [pytest.param(*each, marks=pytest.mark.full) for each in product((2, 3), (0.1, 0.6))],
)
def test_equals_the_statement(family, seed, interval, ratio):
    config = CacherConfig.paper(update_ratio=ratio, refresh_interval=interval)
    tower, frames, outputs, statement = stated(family, config, STREAMS, seed)
    for sizes in ([1] * 8, [8], [3, 1, 4]):
        ours, stats = run(family, tower, config, frames, STREAMS, sizes)
        assert_same(ours, joined(outputs))
        assert stats.tokens_recomputed == statement.computed // len(family.layers_of(tower))
