"""One contract for every store, and what only the file has to stand."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest
from msgspec.structs import replace

from skate.controlplane.decide.values import Failures, Memory, ProxyMemory, ReplicaMemory
from skate.controlplane.store import MemoryStore, SqliteStore, Store
from skate.core.specs import LedgerReport
from tests.decide.world import deployment, goal

MEMORY = Memory(
    next_ordinal=9,
    replicas={"a/A#8": ReplicaMemory("a", "A", "v1", 8, 20.0, ran=True, stop_by=3.5)},
    proxies={"0": ProxyMemory(failures=Failures(1, 2, 3.0, "port in use"))},
    ended_calls={"a/A": LedgerReport(accepted=3, ok=3)},
)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    made: Store = MemoryStore() if request.param == "memory" else SqliteStore(str(tmp_path))
    request.addfinalizer(made.close)
    return made


def test_it_begins_empty(store: Store) -> None:
    saved = store.load()
    assert saved.goals == {} and saved.memory == Memory() and saved.damaged == ()


def test_what_was_put_is_there(store: Store) -> None:
    first, second = goal("a", deployment("a", "A", user_config={"x": [1, "é"]})), goal("ü b", deployment("ü b", "B"))
    store.put_goal(first)
    store.put_goal(second)
    store.put_memory(MEMORY)
    saved = store.load()
    assert saved.goals == {"a": first, "ü b": second} and saved.memory == MEMORY and saved.damaged == ()


def test_the_last_one_put_counts_and_a_dropped_one_is_gone(store: Store) -> None:
    first = goal("a", deployment("a", "A"))
    store.put_goal(first)
    store.put_goal(replace(first, revision=2, deleting=True))
    store.put_memory(MEMORY)
    store.put_memory(replace(MEMORY, ending=True))
    assert store.load().goals["a"].revision == 2 and store.load().memory.ending
    store.drop_goal("a")
    store.drop_goal("never there")
    assert store.load().goals == {}
    store.clear()
    assert store.load().memory == Memory()


def test_the_file_outlives_its_store_and_is_private(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path))
    store.put_goal(goal("a", deployment("a", "A")))
    another = SqliteStore(str(tmp_path))  # the first one was killed: it never closed
    assert set(another.load().goals) == {"a"}
    assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o600
    another.close()
    store.close()


def test_a_damaged_row_is_left_out_and_named(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path))
    for name in ("a", "b"):
        store.put_goal(goal(name, deployment(name, "A")))
    store.put_memory(MEMORY)
    with sqlite3.connect(store.path) as db:
        db.execute("UPDATE rows SET data = x'00' WHERE name IN ('a', 'memory')")
    db.close()
    saved = store.load()
    assert set(saved.goals) == {"b"} and saved.memory == Memory()
    assert sorted(saved.damaged) == ["goal a", "memory memory"]
    store.close()


def test_a_file_that_is_no_database_is_named_and_replaced(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"this is no database" * 100)
    store = SqliteStore(str(tmp_path))
    assert store.load().damaged == (store.path,)
    store.put_goal(goal("a", deployment("a", "A")))
    store.close()
    again = SqliteStore(str(tmp_path))
    assert set(again.load().goals) == {"a"} and again.load().damaged == ()
    again.close()
