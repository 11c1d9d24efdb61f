"""The pool: what it lends, what it takes back, and when it gives memory up."""

from __future__ import annotations

import os
from typing import Any

import pytest

from skate.core.errors import CodeError
from skate.dataplane.shared import pool as module
from skate.dataplane.shared.pool import AWAITED_S, DISOWN_S, IDLE_S, KEEP_S, Pool
from skate.dataplane.shared.segment import AWAITED, FREE, HEAD_SIZE, HELD, KEPT, Grip, Segment

MB = 1 << 20


def lend(pool: Pool, size: int = MB) -> tuple[Segment, Any]:
    loan = pool.lend(size)
    assert loan is not None
    return loan


def test_the_states_of_a_segment() -> None:
    pool = Pool()
    segment, hold = lend(pool)
    assert segment.state() == HELD
    segment.sent = True
    del hold
    assert segment.state() == AWAITED and pool.awaited() == 1
    grip = Grip(os.getpid(), segment.extent)
    assert segment.state() == KEPT and pool.awaited() == 0
    mapping = grip.map()
    del grip
    assert segment.state() == KEPT
    view = memoryview(mapping)[HEAD_SIZE : HEAD_SIZE + 10]
    del mapping
    assert segment.state() == KEPT
    del view
    assert segment.state() == FREE


def test_a_free_segment_is_lent_again_with_another_generation() -> None:
    pool = Pool()
    segment, hold = lend(pool)
    first = segment.extent
    del hold
    again, hold = lend(pool, MB + 5000)
    assert again is segment and again.extent.generation != first.generation
    with pytest.raises(CodeError, match="another value"):
        Grip(os.getpid(), first)
    other, more = lend(pool)
    assert other is not segment and hold and more


def test_the_budget_and_the_number_are_kept() -> None:
    pool = Pool(budget=4 * MB + 4 * HEAD_SIZE, lent_max=10)
    loans = [lend(pool) for _ in range(4)]
    assert pool.lend(MB) is None and pool.spent <= pool.budget
    del loans[0]
    loans.append(lend(pool))
    assert pool.lend(MB) is None
    loans.clear()
    big = lend(pool, 3 * MB)  # what is free in other sizes makes room
    assert big and pool.spent <= pool.budget
    few = Pool(lent_max=2)
    both = [lend(few), lend(few, 5 * MB)]
    assert few.lend(MB) is None
    both.pop()
    assert few.lend(MB) is not None  # a larger one does it, too


def test_what_is_not_used_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP", 3 * MB)
    files = len(os.listdir("/proc/self/fd"))
    pool = Pool()
    loans = [lend(pool) for _ in range(6)]
    loans.clear()
    pool.tend(100.0)
    assert pool.spent > 6 * MB
    pool.tend(100.0 + IDLE_S)
    assert 0 < pool.spent <= 3 * MB
    pool.tend(100.0 + KEEP_S)
    assert pool.spent == 0 and len(os.listdir("/proc/self/fd")) == files


def test_what_is_used_is_not_given_back() -> None:
    pool = Pool()
    segment, hold = lend(pool)
    pool.tend(100.0)
    pool.tend(100.0 + 10 * AWAITED_S)
    assert pool.spent and hold
    del hold
    for turn in range(10):
        pool.tend(5000.0 + turn * KEEP_S * 0.9)
        assert lend(pool)[0] is segment


def test_what_a_receiver_keeps_is_its_own_after_a_while() -> None:
    pool = Pool()
    segment, hold = lend(pool)
    view = segment.write(HEAD_SIZE, memoryview(b"x" * 1000))
    segment.sent = True
    kept = memoryview(Grip(os.getpid(), segment.extent).map())[HEAD_SIZE : HEAD_SIZE + 1000]
    del hold, view
    pool.tend(100.0)
    pool.tend(100.0 + DISOWN_S)
    assert pool.spent == 0 and bytes(kept) == b"x" * 1000
    other = lend(pool)[0]
    other.write(HEAD_SIZE, memoryview(b"y" * 1000))
    assert bytes(kept) == b"x" * 1000


def test_what_nobody_fetches_is_given_up_at_last() -> None:
    pool = Pool()
    segment, hold = lend(pool)
    extent = segment.extent
    segment.sent = True
    del hold, segment
    pool.tend(100.0)
    pool.tend(100.0 + AWAITED_S - 1)
    assert pool.awaited() == 1
    pool.tend(100.0 + AWAITED_S)
    assert pool.awaited() == 0 and pool.spent == 0
    with pytest.raises((OSError, CodeError)):
        Grip(os.getpid(), extent)


def test_a_platform_without_such_memory_lends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AVAILABLE", False)
    pool = Pool()
    assert pool.lend(MB) is None and pool.probe() is None and pool.awaited() == 0
    pool.tend(1.0)


def test_no_more_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", none)
    pool = Pool()
    assert pool.lend(MB) is None and pool.probe() is None


def test_a_child_that_was_forked_lends_nothing_of_its_parents() -> None:
    pool = Pool()
    segment, hold = lend(pool)
    child = os.fork()
    if child == 0:
        pool.forget()
        os._exit(0 if pool.spent == 0 and segment.fd == -1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert segment.state() == HELD and hold
