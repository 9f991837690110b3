"""Which names a stream may have: those that are equal when they are made again."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import ipaddress
import pathlib
import uuid
from typing import NamedTuple

import numpy as np
import pytest
import torch

from stc_stream.stream_names import check_names


class Camera(enum.Enum):
    DOOR = torch.zeros(1)


class Place(NamedTuple):
    rack: int
    slot: object


@dataclasses.dataclass(frozen=True)
class Feed:
    host: str
    port: object = 0
    note: object = dataclasses.field(default=None, compare=False)


class Address:
    """Compares by value, with code of its own, whatever it holds."""

    def __init__(self, url, frame=None):
        self.url, self.frame = url, frame

    def __eq__(self, other):
        return isinstance(other, Address) and self.url == other.url

    def __hash__(self):
        return hash(self.url)


class HashedOnly:
    def __hash__(self):
        return 3


class EqualButHashedByIdentity(Address):
    __hash__ = object.__hash__


class NeverEqual(Address):
    __hash__ = Address.__hash__

    def __eq__(self, other):
        return False


class Undecided(Address):
    __hash__ = Address.__hash__

    def __eq__(self, other):
        return torch.ones(2)


class Plain:
    pass


@pytest.mark.parametrize(
    "name",
    [
        *("door", "", b"door", 0, -1, 2**70, True, 1.5, 1j, None, (), ("rack", (3, None))),
        *(np.int64(3), np.float32(0.1), np.str_("door"), np.datetime64("2026-01-01")),
        *(frozenset({1, "a"}), range(3), Camera.DOOR, Place(1, "a"), Feed("door", 554)),
        *(Feed("door", note=torch.zeros(1)), Address("rtsp://door"), Address("a", Plain())),
        *(uuid.uuid4(), pathlib.Path("/dev/video0"), datetime.timedelta(1), decimal.Decimal("0.1")),
        *(
            fractions.Fraction(1, 3),
            ipaddress.ip_address("10.0.0.1"),
            torch.device("cpu"),
            torch.Size([3]),
        ),
    ],
    ids=repr,
)
def test_values_may_be_names(name):
    check_names([name, copy.deepcopy(name)])
    assert copy.deepcopy(name) == name


IDENTITIES = [
    *(torch.tensor(3), torch.nn.Parameter(torch.zeros(1)), torch.nn.Linear(1, 1), torch.float32),
    *(object(), Plain(), lambda: 3, HashedOnly(), EqualButHashedByIdentity("a")),
    *(NeverEqual("a"), Undecided("a"), (x for x in ())),
    *(
        float("nan"),
        np.float64("nan"),
        complex("nan"),
        decimal.Decimal("nan"),
        np.datetime64("nat"),
    ),
]


@pytest.mark.parametrize("culprit", IDENTITIES, ids=lambda culprit: type(culprit).__name__)
def test_what_is_equal_to_itself_alone_is_no_name(culprit):
    kind = type(culprit).__name__
    with pytest.raises(TypeError, match=f"a {kind} that is equal to nothing but itself.*item"):
        check_names(["door", culprit])
    for name in (
        ("rack", (1, culprit)),
        Place(1, culprit),
        frozenset({1, culprit}),
        Feed("a", culprit),
    ):
        with pytest.raises(TypeError, match=f"in it: a {kind} that is equal to nothing but"):
            check_names([name])


@pytest.mark.parametrize(
    "name", [["door"], {"a": 1}, (1, [2]), np.zeros(2), decimal.Decimal("snan")]
)
def test_what_has_no_hash_is_no_name(name):
    with pytest.raises(TypeError, match="must have hashable names, but one is"):
        check_names([name])


def test_a_long_name_is_shown_shortly():
    with pytest.raises(TypeError) as refused:
        check_names([torch.randn(40, 40)])
    assert len(str(refused.value)) < 400
