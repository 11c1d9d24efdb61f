"""What the tests of payloads share: a pool of their own, and a payload on its way from one end to the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from skate.dataplane import payload
from skate.dataplane.shared.pool import Pool

MB = 1 << 20


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """A pool that no other test has used."""
    made = Pool(budget=64 * MB)
    monkeypatch.setattr(payload, "pool", made)
    yield made


def array(size: int = MB, seed: int = 0) -> Any:
    """An array of ``size`` bytes that says where it came from."""
    return np.random.default_rng(seed).integers(0, 255, size, np.uint8)


def sent(lent: bytes, shares: bool = True) -> bytes:
    """What leaves for a connection: bytes that hold nothing."""
    if not isinstance(lent, payload.Lent):
        return bytes(lent)
    if shares:
        lent.leaves()  # as an answer does, which nobody here holds until it was fetched
    return bytes(lent.on_wire(shares))


def travelled(value: Any, shares: bool = True) -> Any:
    """The value as a receiver sees it; both ends are this process."""
    lent = payload.dumps(value, shares)
    return payload.loads(payload.receive(sent(lent, shares), os.getpid()))
