"""What becomes of a former state at the next start: taken up, or set aside where the next one finds it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from skate.controlplane.decide.values import Memory, Order
from skate.controlplane.restore import named, set_aside, take_up
from skate.controlplane.store import REST, Rest, Row, Saved, SqliteStore, revision_row
from skate.core.config import AppConfig
from skate.core.specs import Event
from tests.controlplane.test_store import MEMORY, goal_row, memory_rows
from tests.decide.world import deployment, goal


@contextlib.contextmanager
def state(folder: Path) -> Iterator[SqliteStore]:
    """The state as the instance has it that runs there."""
    store = SqliteStore(str(folder), durable=True)
    try:
        yield store
    finally:
        store.close()


def deployed(folder: Path, *apps: str) -> None:
    """An instance ran, and these applications were deployed when it ended."""
    with state(folder) as store:
        for app in apps:
            wanted = goal(app, deployment(app, "A"))
            store.write(
                [goal_row(wanted), revision_row(wanted)], [Event(store.last_event() + 1, 1.0, app, "", "x", "")]
            )
        store.write(memory_rows(replace(MEMORY, ending=True)))


def started(folder: Path, restore: bool) -> tuple[list[str], Saved]:
    """What a start says, and what the instance finds."""
    said = take_up(str(folder), 5.0) if restore else set_aside(str(folder))
    with state(folder) as store:
        return said, store.load()


def test_what_was_wanted_is_taken_up_and_of_processes_nothing(tmp_path: Path) -> None:
    deployed(tmp_path, "a", "going")
    with state(tmp_path) as store:
        store.write([goal_row(replace(goal("going", deployment("going", "A")), deleting=True))])
        store.write([Row("order", "b", Order(AppConfig("b", "m:b"), 1, 1.0))])
    said, saved = started(tmp_path, restore=True)
    assert said == ["Restored: 2 applications (a, b). See how they start: skate status"]
    assert set(saved.goals) == {"a"} and set(saved.orders) == {"b"}
    assert saved.memory == Memory(next_ordinal=MEMORY.next_ordinal) and saved.capacity == 50.0
    with state(tmp_path) as store:
        assert [one.revision for one in store.revisions("a")] == [1]
        assert [(one.id, one.kind) for one in store.events(0, None, 10)] == [(1, "x"), (2, "x"), (3, "restored")]


def test_a_revision_that_never_worked_gives_way_to_the_one_that_served(tmp_path: Path) -> None:
    worked = replace(goal("a", deployment("a", "A", "v1"), revision=4), worked=True)
    broken = goal("a", deployment("a", "A", "v2"), revision=5)
    broken = replace(broken, retiring=(worked.spec,))
    first = goal("b", deployment("b", "A", "v1"))  # never worked either, but there is nothing else
    with state(tmp_path) as store:
        rows = [row for one in (worked, broken, first) for row in (goal_row(one), revision_row(one))]
        store.write(rows)
    said, saved = started(tmp_path, restore=True)
    assert said[0] == (
        "a: revision 5 never worked; revision 4, which served, is restored. To try the other one again: "
        "skate rollback a --to 5"
    )
    back = saved.goals["a"]
    assert (back.spec, back.revision, back.cause, back.retiring) == (worked.spec, 6, "restore of 4", ())
    assert saved.goals["b"] == first
    with state(tmp_path) as store:
        assert [one.revision for one in store.revisions("a")] == [4, 5, 6]


def test_there_may_be_nothing_to_restore(tmp_path: Path) -> None:
    assert started(tmp_path, restore=True)[0] == ["Nothing was deployed before, so nothing is restored."]
    assert "none is restored" in started(tmp_path, restore=True)[0][0]  # now there is an empty state
    assert started(tmp_path, restore=False)[0] == []


def test_a_start_without_restore_says_how_to_have_it_back_and_then_it_is_there(tmp_path: Path) -> None:
    deployed(tmp_path, "a", "b")
    for _ in range(3):  # starts without deploying anything do not lose it
        said, saved = started(tmp_path, restore=False)
        assert saved == Saved() and len(said) == 1
        assert said[0].startswith("Set aside: 2 applications (a, b).") and "skate start --restore" in said[0]
    said, saved = started(tmp_path, restore=True)
    assert set(saved.goals) == {"a", "b"} and "had set aside" in said[0]


def test_the_last_state_of_which_something_was_wanted_is_the_one_that_comes_back(tmp_path: Path) -> None:
    deployed(tmp_path, "old")
    started(tmp_path, restore=False)
    deployed(tmp_path, "new")
    assert set(started(tmp_path, restore=True)[1].goals) == {"new"}
    assert "1 application (new)" in started(tmp_path, restore=False)[0][0]
    assert set(started(tmp_path, restore=True)[1].goals) == {"new"}


def test_where_all_was_deleted_nothing_older_comes_back(tmp_path: Path) -> None:
    deployed(tmp_path, "old")
    started(tmp_path, restore=False)
    deployed(tmp_path, "new")
    with state(tmp_path) as store:
        store.write([Row("goal", "new")])
    assert started(tmp_path, restore=True)[1].goals == {}
    assert started(tmp_path, restore=False)[0] == []
    assert started(tmp_path, restore=True)[1].goals == {}


@pytest.mark.parametrize("restore", [True, False])
def test_a_torn_state_is_said_and_nothing_older_takes_its_place(tmp_path: Path, restore: bool) -> None:
    deployed(tmp_path, "old")
    started(tmp_path, restore=False)
    deployed(tmp_path, "new")
    os.truncate(tmp_path / "state.db", 50)
    said, saved = started(tmp_path, restore=restore)
    assert "state.db.damaged" in said[0] and "damaged and was left out" in said[0]
    assert saved.goals == {} and (tmp_path / "state.db.damaged").exists()


def test_a_row_that_is_damaged_is_said(tmp_path: Path) -> None:
    deployed(tmp_path, "a")
    with state(tmp_path) as store:
        store.write([Row("rest", REST, Rest(capacity=10.0))])
        store._db.execute("UPDATE rows SET data = x'00' WHERE kind IN ('rest', 'deployment')")
    said, saved = started(tmp_path, restore=True)
    assert set(saved.goals) == {"a"} and saved.memory == Memory() and saved.damaged == ()
    assert any("rest rest" in line for line in said) and "Restored: 1 application (a)" in said[-1]


def test_many_names_are_cut() -> None:
    assert named([str(number) for number in range(9)]) == "9 applications (0, 1, 2, 3, 4 and 4 more)"
