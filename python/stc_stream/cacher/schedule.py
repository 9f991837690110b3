"""Which rows of a batch are computed whole, and what the others are held against."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """What becomes of each row of a batch; rows are given by their place in it.

    Attributes:
        refresh: rows computed whole.
        stored: selective rows held against the reference their stream had before the batch.
        joined: selective rows held against a row of `refresh`.
        joined_reference: for each of `joined`, its reference's place in `refresh`.
        references: for each stream with a row in `refresh`, the place in it of the last, which
            becomes the stream's reference.
    """

    refresh: tuple[int, ...]
    stored: tuple[int, ...]
    joined: tuple[int, ...]
    joined_reference: tuple[int, ...]
    references: Mapping[Hashable, int]


def schedule(
    streams: Sequence[Hashable],
    frames: Mapping[Hashable, int],
    referenced: Collection[Hashable],
    refresh_interval: int,
) -> Schedule:
    """Decide the rows of one batch, exactly as if they came one by one.

    Args:
        streams: the stream of each row; rows of one stream are in time order.
        frames: how many frames each stream has had; a stream not named has had none.
        referenced: streams with a reference that the batch's rows can be held against.
        refresh_interval: frame t of a stream is whole when t is a multiple of it.
    """
    seen = dict(frames)
    refresh: list[int] = []
    stored: list[int] = []
    joined: list[int] = []
    joined_reference: list[int] = []
    references: dict[Hashable, int] = {}
    for row, stream in enumerate(streams):
        t = seen.get(stream, 0)
        seen[stream] = t + 1
        due = t % refresh_interval == 0
        if due or (stream not in references and stream not in referenced):
            references[stream] = len(refresh)
            refresh.append(row)
        elif stream in references:
            joined.append(row)
            joined_reference.append(references[stream])
        else:
            stored.append(row)
    return Schedule(
        tuple(refresh), tuple(stored), tuple(joined), tuple(joined_reference), references
    )
