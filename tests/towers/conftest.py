"""Every family as a parameter."""

from __future__ import annotations

import pytest
from towers.families import FAMILIES, Family


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    """Return one family after the other."""
    return request.param


@pytest.fixture
def tower(family, seed):
    """Return a tower of the family, with random weights."""
    return family.tower(seed)
