"""A rule of one's own for which patches are recomputed, in every family, against the statement."""

from __future__ import annotations

import math
from itertools import count

import torch
from towers.families import joined
from towers.statement import Statement
from towers.test_parity import CLEAR, STREAMS, assert_same, run

from stc_stream import CacherConfig


class LargestStep:
    """The patches in whose keys any channel changed most, and how clear the closest choice was."""

    def __init__(self):
        self.margin = math.inf

    def choose(self, current, reference, k):
        steps, order = (current - reference).abs().amax(dim=2).sort(dim=1, descending=True)
        if k < steps.shape[1]:
            self.margin = min(self.margin, float((steps[:, k - 1] - steps[:, k]).min()))
        return order[:, :k].sort(dim=1).values


def test_a_rule_of_ones_own_equals_the_statement(family, seed):
    for draw in count(seed):
        rule = LargestStep()
        config = CacherConfig.paper(update_ratio=0.3, refresh_interval=3, selection=rule)
        tower, frames = family.tower(draw), family.frames(STREAMS, draw)
        statement = Statement(family, tower, config)
        with torch.no_grad():
            outputs = [statement.run(*row) for row in zip(frames, STREAMS, strict=True)]
        if rule.margin > CLEAR:
            break
    for sizes in ([1] * 8, [8], [3, 1, 4]):
        ours, stats = run(family, tower, config, frames, STREAMS, sizes)
        assert_same(ours, joined(outputs))
        assert stats.tokens_recomputed == statement.computed // len(family.layers_of(tower))
