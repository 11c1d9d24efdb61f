"""A folder of its own for every test of an engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.world import World, world


@pytest.fixture(name="world")
def _world() -> Iterator[World]:
    with world() as made:
        yield made
