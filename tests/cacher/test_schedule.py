"""Which rows are computed whole and who holds a reference, against a loop over single frames."""

from __future__ import annotations

import math
import random
from collections import OrderedDict

import pytest
import torch

from stc_stream import CacherConfig
from stc_stream.cacher.frames import BatchFrames
from stc_stream.cacher.plan import Rows
from stc_stream.cacher.references import FrameKind, LayerShape, ReferencePool
from stc_stream.cacher.schedule import RefreshScheduler

SMALL = FrameKind(4, 8, None, torch.float32, torch.float32, torch.device("cpu"))
LARGE = SMALL._replace(tokens=9)
SLOT = 3 * 8 * 4
"""Bytes a token of a tower of one layer."""


def make_streams(**settings):
    config = CacherConfig(**{"refresh_on_change": None, **settings})
    return RefreshScheduler(config, lambda kind: ReferencePool(kind, [LayerShape(8, 8)]))


def run(streams, names, kinds=None, finite=None, pictures=None):
    """Plan and commit a batch; return for each row "refresh", or the frame or entry it reads.

    Of pictures, a number each, two that differ have changed by their difference.
    """
    kinds = kinds or [SMALL] * len(names)
    asked = []

    def shares(current, reference):
        asked.append(len(current))
        return (torch.stack(list(current)) - torch.stack(list(reference))).abs()

    pixels = None if pictures is None else list(torch.tensor(pictures))
    frames = BatchFrames(kinds, lambda: torch.tensor(finite or [True] * len(names)), pixels, shares)
    plans = streams.plan(names, frames)
    rows = {}
    for plan in plans:
        rows |= {plan.frames[row]: "refresh" for row in plan.refresh or ()}
        for some in plan.selective:
            for row, reference in zip(some.rows, some.references, strict=True):
                from_pool = some is plan.from_pool
                rows[plan.frames[row]] = (
                    ("entry", reference)
                    if from_pool
                    else ("frame", plan.frames[plan.refresh.places[reference]])
                )
    saved = [Rows(plan.saved_frames, torch.device("cpu")) for plan in plans]
    streams.commit(plans, 1, [own.take(frames.flags) if len(own) else None for own in saved])
    assert len(asked) <= 1
    return [rows[row] for row in range(len(names))]


def test_interval_counts_the_frames_of_each_stream():
    rows = run(make_streams(refresh_interval=2), ["a", "b", "a", "a", "b"])
    assert rows == ["refresh", "refresh", ("frame", 0), "refresh", ("frame", 1)]


def test_a_frame_that_is_not_finite_leaves_no_reference():
    streams = make_streams(refresh_interval=4)
    rows = run(streams, ["a", "a", "a"], finite=[False, True, False])
    assert rows == ["refresh", "refresh", ("frame", 1)]
    assert streams.counts.rejected == 1
    assert run(streams, ["a", "a"]) == [("entry", 0), "refresh"]


def test_staggered_streams_refresh_in_turn():
    streams = make_streams(refresh_interval=4, stagger=True)
    names = list("abcdefgh")
    assert run(streams, names) == ["refresh"] * 8
    for _ in range(12):
        assert run(streams, names).count("refresh") == 2


def test_staggering_leaves_a_lone_stream_alone():
    plain, staggered = make_streams(), make_streams(stagger=True)
    assert run(staggered, ["a"] * 12) == run(plain, ["a"] * 12)


def test_no_reference_is_larger_than_the_limit():
    with pytest.raises(ValueError, match=f"max_bytes must be at least {4 * SLOT}, .* is 10"):
        run(make_streams(max_bytes=10), ["a"])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_streams": 2},
        {"max_bytes": 13 * SLOT},
        {"stagger": True, "max_streams": 3},
        {"refresh_on_change": 0.5},
        {"refresh_on_change": 0.5, "max_streams": 2},
        {"refresh_on_change": 0.5, "stagger": True, "max_bytes": 14 * SLOT},
        {"refresh_on_change": 0.5, "max_refresh_ratio": 1.0},
    ],
)
def test_a_batch_is_its_rows_one_by_one(settings, seed):
    draw = random.Random(seed)
    for _ in range(60):
        interval = draw.randrange(1, 6)
        together = make_streams(refresh_interval=interval, **settings)
        singly = make_streams(refresh_interval=interval, **settings)
        kinds: dict[str, FrameKind] = {}
        sources: dict[str, object] = {}
        for batch in range(4):
            names = draw.choices("abcdef", k=draw.randrange(1, 20))
            finite = [draw.random() > 0.1 for _ in names]
            rows_kinds = []
            for name in names:
                if draw.random() < 0.1:
                    kinds[name] = draw.choice([SMALL, LARGE])
                rows_kinds.append(kinds.setdefault(name, SMALL))
            pictures = [float(draw.random() < 0.3) for _ in names]
            rows = run(together, names, rows_kinds, finite, pictures)
            for row, name in enumerate(names):
                alone = ([rows_kinds[row]], [finite[row]], [pictures[row]])
                (single,) = run(singly, [name], *alone)
                assert (single == "refresh") == (rows[row] == "refresh")
                if single == "refresh":
                    sources[name] = (batch, row)
                elif rows[row][0] == "frame":
                    assert sources[name] == (batch, rows[row][1])
                else:
                    assert sources[name][0] < batch
            assert together.counts == singly.counts
            assert list(together) == list(singly)


@pytest.mark.parametrize(
    ("interval", "ratio"), [(4, 0.5), (4, 0.3), (3, 0.6), (100, 0.2), (2, 1.0)]
)
@pytest.mark.parametrize("size", [1, 7])
def test_a_cap_holds_over_any_16_frames(interval, ratio, size, seed):
    draw = random.Random(seed)
    moving = [draw.random() < 0.8 for _ in range(84)]
    # A frame that moves differs from all, the others from none but those.
    pictures = [float(1 + t) if moved else 0.0 for t, moved in enumerate(moving)]
    streams = make_streams(
        refresh_interval=interval, refresh_on_change=0.5, max_refresh_ratio=ratio
    )
    whole, reference, changes, forbidden = [], None, [], 0
    for t in range(84):
        wanted = reference is not None and pictures[t] != reference
        scheduled = t % interval == 0
        allowed = math.floor(16 * ratio) - math.ceil(16 / interval)
        room = sum(t - each < 16 for each in changes) < allowed
        if wanted and not scheduled:
            changes += [t] * room
            forbidden += not room
        whole.append(scheduled or (wanted and room))
        reference = pictures[t] if whole[-1] else reference
    found = []
    for first in range(0, 84, size):
        some = pictures[first : first + size]
        found += [row == "refresh" for row in run(streams, ["a"] * size, pictures=some)]
    assert found == whole
    assert streams.counts.forbidden == forbidden
    assert all(sum(whole[first : first + 16]) <= 16 * ratio for first in range(84))


def test_a_policy_is_held_to_the_cap_as_well():
    class Always:
        def refreshes(self, frame):
            return True

    streams = make_streams(policy=Always(), max_refresh_ratio=0.25)
    found = run(streams, ["a"] * 40)
    assert [row == "refresh" for row in found[1:33]] == ([True] * 4 + [False] * 12) * 2
    assert streams.counts.forbidden == 40 - found.count("refresh")


def test_a_batch_that_failed_does_not_count_towards_the_cap():
    streams = make_streams(refresh_interval=100, refresh_on_change=0.5, max_refresh_ratio=0.125)
    assert run(streams, ["a"], pictures=[0.0]) == ["refresh"]
    for _ in range(3):
        pixels = [torch.tensor(5.0)]
        frames = BatchFrames(
            [SMALL], lambda: torch.ones(1), pixels, lambda a, b: torch.ones(len(a))
        )
        streams.plan(["a"], frames)
        streams.roll_back()
    assert run(streams, ["a", "a"], pictures=[7.0, 9.0]) == ["refresh", "refresh"]
    assert run(streams, ["a"], pictures=[11.0]) == [("entry", 0)]


def test_the_stream_not_seen_for_longest_is_forgotten(seed):
    draw = random.Random(seed)
    streams, expected = make_streams(max_streams=3, refresh_interval=100), OrderedDict()
    for _ in range(200):
        name = draw.choice("abcdef")
        (row,) = run(streams, [name])
        assert (row == "refresh") == (name not in expected)
        expected[name] = None
        expected.move_to_end(name)
        while len(expected) > 3:
            expected.popitem(last=False)
        assert list(streams) == list(expected)


def test_pixels_are_compared_with_those_of_frames_of_the_same_kind_alone():
    streams = make_streams(refresh_interval=100, refresh_on_change=0.5)
    compared = []

    def changes(current, reference):
        compared.append([(float(a), float(b)) for a, b in zip(current, reference, strict=True)])
        return torch.zeros(len(current))

    moved = SMALL._replace(device=torch.device("meta"))
    for number, kinds in enumerate(([SMALL, SMALL], [SMALL, moved])):
        pixels = [torch.tensor(number + 10.0 * row) for row in range(2)]
        plans = streams.plan(["a", "b"], BatchFrames(kinds, lambda: torch.ones(2), pixels, changes))
        streams.commit(plans, 1, [None] * len(plans))
    assert compared == [[(1.0, 0.0)]]
    assert streams.counts.restarts == 1


def test_a_batch_that_failed_leaves_counts_but_no_references():
    streams = make_streams(refresh_interval=4)
    run(streams, ["a", "b", "a"])
    before = streams.counts
    streams.plan(["a", "new", "a"], BatchFrames([SMALL] * 3, lambda: torch.ones(3)))
    streams.roll_back()
    assert streams.counts == before
    assert list(streams) == ["b", "a"]
    assert run(streams, ["a", "b"])[0] == "refresh"
    assert [row == "refresh" for row in run(streams, ["a", "a"])] == [False, True]
