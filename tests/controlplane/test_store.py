"""One contract for every store, and what only the file has to stand."""

from __future__ import annotations

import os
import random
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from skate.controlplane.decide.values import (
    DeploymentMemory,
    Failures,
    Goal,
    Happening,
    Memory,
    Order,
    ProxyMemory,
    ReplicaMemory,
)
from skate.controlplane.records import Records
from skate.controlplane.store import (
    EVENTS_MAX,
    EVENTS_SLACK,
    REST,
    REVISIONS_MAX,
    MemoryStore,
    Rest,
    Row,
    Saved,
    SqliteStore,
    Store,
    revision_row,
)
from skate.core.config import AppConfig
from skate.core.errors import StoreError
from skate.core.specs import Event, LedgerReport
from tests.decide.world import deployment, goal

MEMORY = Memory(
    next_ordinal=9,
    deployments={
        "a/A": DeploymentMemory("v1", replicas={"a/A#8": ReplicaMemory("v1", 8, 20.0, ran=True, stop_by=3.5)})
    },
    proxies={"0": ProxyMemory(failures=Failures(1, 2, 3.0, "port in use"))},
    ended_calls={"a/A": LedgerReport(accepted=3, ok=3)},
)


def goal_row(wanted: Goal) -> Row:
    return Row("goal", wanted.spec.name, wanted)


def memory_rows(memory: Memory) -> list[Row]:
    rows = [Row("deployment", key, one) for key, one in memory.deployments.items()]
    return [*rows, Row("rest", REST, Rest(replace(memory, deployments={}), 50.0))]


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
    store.write([goal_row(first)])
    store.write([goal_row(second)])
    store.write(memory_rows(MEMORY))
    saved = store.load()
    assert saved.goals == {"a": first, "ü b": second} and saved.memory == MEMORY and saved.damaged == ()


def test_the_last_one_put_counts_and_a_dropped_one_is_gone(store: Store) -> None:
    first = goal("a", deployment("a", "A"))
    store.write([goal_row(first)])
    store.write([goal_row(replace(first, revision=2, deleting=True))])
    store.write(memory_rows(MEMORY))
    store.write(memory_rows(replace(MEMORY, ending=True)))
    assert store.load().goals["a"].revision == 2 and store.load().memory.ending
    store.write([Row("goal", "a")])
    store.write([Row("goal", "never there")])
    assert store.load().goals == {}


def test_the_file_outlives_its_store_and_is_private(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path))
    store.write([goal_row(goal("a", deployment("a", "A")))])
    another = SqliteStore(str(tmp_path))  # the first one was killed: it never closed
    assert set(another.load().goals) == {"a"}
    assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o600
    another.close()
    store.close()


def test_a_damaged_row_is_left_out_and_named(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path))
    for name in ("a", "b"):
        store.write([goal_row(goal(name, deployment(name, "A")))])
    store.write(memory_rows(MEMORY))
    with sqlite3.connect(store.path) as db:
        db.execute("UPDATE rows SET data = x'00' WHERE name IN ('a', 'rest')")
    db.close()
    saved = store.load()
    assert set(saved.goals) == {"b"} and saved.memory == Memory(deployments=MEMORY.deployments)
    assert sorted(saved.damaged) == ["goal a", "rest rest"]
    store.close()


def filled(folder: Path, durable: bool = True, count: int = 40) -> SqliteStore:
    """A store with applications, revisions and events on many pages."""
    folder.mkdir(exist_ok=True)
    store = SqliteStore(str(folder), durable=durable)
    names = [f"app{number:02}" for number in range(count)]
    goals = [goal(name, deployment(name, "A", user_config={"text": name * 200})) for name in names]
    rows = [row for wanted in goals for row in (goal_row(wanted), revision_row(wanted))]
    store.write(rows, [event(number, name) for number, name in enumerate(names, 1)])
    store.write(memory_rows(MEMORY))
    return store


def killed(store: SqliteStore, folder: Path, sides: Sequence[str] = ("", "-wal")) -> str:
    """These files of the store as a SIGKILL would leave them, in a folder of their own."""
    folder.mkdir()
    for side in sides:
        (folder / f"state.db{side}").write_bytes(Path(store.path + side).read_bytes())
    return str(folder)


def opened(folder: str) -> tuple[Saved, list[Event]]:
    store = SqliteStore(folder, durable=True)
    try:
        return store.load(), store.events(0, None, 1000)
    finally:
        store.close()


def test_a_file_that_is_no_database_is_named_and_replaced(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"this is no database" * 100)
    store = SqliteStore(str(tmp_path))
    (named,) = store.load().damaged
    assert store.path in named and "0 values" in named
    assert (tmp_path / "state.db.damaged").read_bytes().startswith(b"this is no database")
    store.write([goal_row(goal("a", deployment("a", "A")))])
    store.close()
    again = SqliteStore(str(tmp_path))
    assert set(again.load().goals) == {"a"} and again.load().damaged == ()
    assert stat.S_IMODE(os.stat(again.path).st_mode) == 0o600
    again.close()


def test_a_file_with_nothing_in_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.db").touch()
    store = SqliteStore(str(tmp_path))
    assert "nothing in it" in store.load().damaged[0]
    store.write(memory_rows(MEMORY))
    assert store.load().memory == MEMORY
    store.close()


def test_of_a_torn_file_the_readable_rest_stays(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.close()
    data = bytearray(Path(store.path).read_bytes())
    middle = data.index(b"app20" * 10)
    data[middle - middle % 4096 : middle - middle % 4096 + 4096] = b"\xaa" * 4096
    Path(store.path).write_bytes(data)
    saved, events = opened(str(tmp_path))
    assert len(saved.damaged) == 1 and "state.db.damaged" in saved.damaged[0]
    assert 20 < len(saved.goals) < 40 and "app00" in saved.goals and "app39" in saved.goals
    assert saved.memory == MEMORY and len(events) == 40


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_torn_is_said_and_nothing_that_is_loaded_is_wrong(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    store = filled(tmp_path / "one", count=12)
    folder = Path(killed(store, tmp_path / "two"))
    whole, _ = opened(killed(store, tmp_path / "three"))
    store.close()
    path = folder / "state.db"
    data = bytearray(path.read_bytes())
    at = chance.randrange(len(data))
    if chance.random() < 0.3:
        del data[at:]
    else:
        size = chance.choice((1, 16, 600, 5000))
        data[at : at + size] = chance.randbytes(len(data[at : at + size]))
    path.write_bytes(data)
    saved, events = opened(str(folder))
    assert all(whole.goals[name] == one for name, one in saved.goals.items())
    assert saved.goals == whole.goals or saved.damaged
    assert all(event(one.id, one.app) == one for one in events)
    again, events_again = opened(str(folder))
    assert again.goals == saved.goals and again.memory == saved.memory and events_again == events


def test_what_a_user_was_told_is_stored_needs_no_second_file(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path), durable=True)
    store.write([goal_row(goal("a", deployment("a", "A")))], [event(1)])
    store.write([Row("order", "b", Order(AppConfig("b", "m:b"), 1, 1.0))])
    store.write(memory_rows(MEMORY))
    saved, _ = opened(killed(store, tmp_path / "two", [""]))
    store.close()
    assert set(saved.goals) == {"a"} and set(saved.orders) == {"b"} and saved.damaged == ()


FULL_DISK = """
import resource, signal, sqlite3, sys
from skate.controlplane.store import SqliteStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in (0, 100, 40_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        print(limit, len(SqliteStore(sys.argv[1], durable=True).load().goals))
    except (OSError, sqlite3.Error) as error:
        print(limit, "full:", error)
"""


def test_a_full_disk_is_no_torn_file(tmp_path: Path) -> None:
    filled(tmp_path).close()
    before = opened(str(tmp_path))
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[0].startswith("0 full:") and said[-1] == "40000 40"
    assert opened(str(tmp_path)) == before and not (tmp_path / "state.db.damaged").exists()


def revision(app: str, number: int) -> Row:
    return revision_row(goal(app, deployment(app, "A", f"v{number}"), revision=number))


def test_revisions_are_kept_in_order_and_only_so_many(store: Store) -> None:
    for number in range(1, REVISIONS_MAX + 6):
        store.write([revision("a", number)])
    store.write([revision("a b", 1), revision("ab", 7)])
    assert [one.revision for one in store.revisions("a")] == list(range(6, REVISIONS_MAX + 6))
    assert [one.revision for one in store.revisions("ab")] == [7]
    assert store.revisions("none") == [] and store.load().goals == {}


def event(number: int, app: str = "a") -> Event:
    return Event(number, 1000.0 + number, app, "A", "scaled", "from 1 to 2", {"before": 1})


def test_events_are_read_from_the_newest_back(store: Store) -> None:
    store.write([], [event(1), event(2, "b"), event(3)])
    store.write([], [event(4)])
    assert [one.id for one in store.events(0, None, 10)] == [1, 2, 3, 4]
    assert [one.id for one in store.events(1, "a", 10)] == [3, 4]
    assert [one.id for one in store.events(0, None, 2)] == [3, 4]
    assert store.events(3, None, 1) == [event(4)] and store.last_event() == 4


def test_old_events_go(store: Store) -> None:
    for first in range(1, EVENTS_MAX + 3 * EVENTS_SLACK, EVENTS_SLACK):
        store.write([], [event(number) for number in range(first, first + EVENTS_SLACK)])
    kept = store.events(0, None, 10 * EVENTS_MAX)
    assert EVENTS_MAX <= len(kept) <= EVENTS_MAX + EVENTS_SLACK and kept[-1].id == store.last_event()


def test_what_belongs_together_is_written_together_or_not_at_all(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path))
    store.write([goal_row(goal("a", deployment("a", "A")))], [event(1)])
    with pytest.raises(sqlite3.IntegrityError):
        store.write([goal_row(goal("b", deployment("b", "B")))], [event(1)])
    assert set(store.load().goals) == {"a"}
    store.write([goal_row(goal("c", deployment("c", "C")))], [event(2)])  # and it goes on
    assert set(store.load().goals) == {"a", "c"}
    store.close()


class Full(MemoryStore):
    """A store on a disk that is full now and then."""

    full = False

    def write(self, rows: Sequence[Row], events: Sequence[Event] = ()) -> None:
        if self.full:
            raise sqlite3.OperationalError("database or disk is full")
        super().write(rows, events)


def test_what_could_not_be_written_is_written_later_and_a_wish_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    store = Full()
    records = Records(store)
    store.full = True
    records.put(*memory_rows(MEMORY))
    records.happened([Happening("a", "A", "scaled", "from 1 to 2")], 1.0)
    assert not records.write() and not records.write() and records.pending
    with pytest.raises(StoreError, match="disk is full"):
        records.must_write([goal_row(goal("a", deployment("a", "A")))], [Happening("a", "", "deployed", "")], 2.0)
    assert caplog.text.count("cannot be written") == 1
    assert [one.kind for one in records.read_events(0, None, 10)] == ["scaled"]
    store.full = False
    assert records.write() and not records.pending
    assert store.load().memory == MEMORY and store.load().goals == {} and store.last_event() == 1


def torn(data: bytes, chance: random.Random) -> bytes:
    """The file after misfortune: single bytes, a page, or its end."""
    made, at = bytearray(data), chance.randrange(len(data))
    page = slice(at // 4096 * 4096, at // 4096 * 4096 + 4096)
    match chance.choice(("byte", "bytes", "page", "zeros", "end")):
        case "byte":
            made[at] ^= 1 + chance.randrange(255)
        case "bytes":
            for _ in range(20):
                made[chance.randrange(len(made))] = chance.randrange(256)
        case "page":
            made[page] = chance.randbytes(4096)
        case "zeros":
            made[page] = bytes(4096)
        case "end":
            del made[at:]
    return bytes(made)


def test_however_the_file_is_torn_it_is_said_and_the_next_wish_is_stored(tmp_path: Path) -> None:
    whole, apps = SqliteStore(str(tmp_path)), [f"app{number}" for number in range(25)]
    goals = [goal(name, deployment(name, "A")) for name in apps]
    said = [Happening(name, "", "deployed", "it was") for name in apps * 8]
    Records(whole).must_write([*map(goal_row, goals), *map(revision_row, goals)], said, 1.0)
    whole.close()
    data, kept = Path(whole.path).read_bytes(), 0
    for seed in range(60):
        Path(whole.path).write_bytes(torn(data, random.Random(seed)))
        store = SqliteStore(str(tmp_path))
        saved = store.load()
        assert saved.damaged or list(saved.goals) == apps, f"seed {seed}: something was lost in silence"
        kept += len(saved.goals)
        Records(store).must_write(
            [goal_row(goals[0]), revision_row(goals[0])], [Happening("app0", "", "again", "")], 2.0
        )
        assert store.revisions("app0") and store.events(0, None, 10)[-1].kind == "again"
        store.close()
        again = SqliteStore(str(tmp_path))
        assert set(again.load().goals) == {*saved.goals, "app0"}, f"seed {seed}"
        again.close()
    assert kept > 60 * len(apps) / 2, "what could be read was thrown away"


def test_of_an_application_that_is_gone_only_the_last_revision_is_kept(store: Store) -> None:
    store.write([revision("a", 1), revision("a", 2), revision("ab", 1), revision("ab", 2)])
    store.write([Row("goal", "a")])
    assert [one.revision for one in store.revisions("a")] == [2]
    assert [one.revision for one in store.revisions("ab")] == [1, 2]


def test_a_long_traceback_is_short_in_the_log_of_events(store: Store) -> None:
    records = Records(store)
    records.must_write(
        [], [Happening("a", "A", "start_failed", "in its constructor" + "x" * 32_000 + "no weights")], 1.0
    )
    message = records.read_events(0, None, 1)[0].message
    assert len(message) < 2100 and message.startswith("in its constructor") and message.endswith("no weights")
