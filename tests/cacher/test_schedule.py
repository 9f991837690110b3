"""Which rows are computed whole, against a loop over single frames."""

from __future__ import annotations

import random

from stc_stream.cacher.schedule import schedule


def test_interval_counts_the_frames_of_each_stream():
    plan = schedule(["a", "b", "a", "a", "b"], {}, set(), 2)
    assert plan.refresh == (0, 1, 3)
    assert plan.joined == (2, 4)
    assert plan.joined_reference == (0, 1)
    assert plan.stored == ()
    assert plan.references == {"a": 2, "b": 1}


def test_without_a_reference_a_frame_is_whole_and_the_count_goes_on():
    plan = schedule(["a", "a", "a"], {"a": 5}, set(), 4)
    assert plan.refresh == (0,)
    assert plan.joined == (1, 2)
    plan = schedule(["a", "a", "a", "a"], {"a": 5}, {"a"}, 4)
    assert plan.stored == (0, 1, 2)
    assert plan.refresh == (3,)


def test_a_batch_is_its_rows_one_by_one(seed):
    draw = random.Random(seed)
    for _ in range(200):
        streams = draw.choices("abcd", k=draw.randrange(1, 20))
        frames = {name: draw.randrange(9) for name in "abc"}
        referenced = {name for name in frames if draw.random() < 0.6}
        interval = draw.randrange(1, 6)
        plan = schedule(streams, frames, referenced, interval)
        source: dict[str, object] = dict.fromkeys(referenced, "stored")
        counts = dict(frames)
        last = {}
        for row, name in enumerate(streams):
            single = schedule([name], counts, source.keys(), interval)
            if single.refresh:
                source[name] = last[name] = plan.refresh.index(row)
            elif source[name] == "stored":
                assert row in plan.stored
            else:
                assert plan.joined_reference[plan.joined.index(row)] == source[name]
            counts[name] = counts.get(name, 0) + 1
        assert plan.references == last
        assert sorted(plan.refresh + plan.stored + plan.joined) == list(range(len(streams)))
