"""What the controller must not forget: what is wanted, the memory of its decisions, former revisions, what happened.

Law: a row that comes back damaged is reported and left out, never half believed; what was written is there after the
death of this process, and what belongs together is written together or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from skate.controlplane.decide.values import DeploymentMemory, Goal, Memory, Order
from skate.core.specs import Event

T = TypeVar("T")

FILE = "state.db"
EVENTS_MAX = 10_000  # kept; older ones go
EVENTS_SLACK = 500  # more than that before the older ones are looked for
REVISIONS_MAX = 20  # kept of each application

Kind = Literal["goal", "order", "deployment", "rest", "revision"]
_encode = msgspec.msgpack.Encoder().encode


class Rest(msgspec.Struct, frozen=True):
    """What is no deployment's: the memory without its deployments, and the capacity that is wanted."""

    memory: Memory = Memory()
    capacity: float | None = None


REST = "rest"  # the name of its row
_types: dict[str, Any] = {
    "goal": Goal,
    "order": Order,
    "deployment": DeploymentMemory,
    "rest": Rest,
    "revision": Goal,
}


class Row(msgspec.Struct, frozen=True):
    """One value to be put under a name, or, with ``value`` None, to be dropped."""

    kind: Kind
    name: str
    value: Any = None


class Saved(msgspec.Struct, frozen=True):
    """Everything in a store. ``damaged`` names what was there and could not be read."""

    goals: dict[str, Goal] = {}
    orders: dict[str, Order] = {}
    memory: Memory = Memory()
    capacity: float | None = None
    damaged: tuple[str, ...] = ()


class Store(Protocol):
    """Where all that is kept. Whatever cannot be written or read raises OSError or sqlite3.Error."""

    def load(self) -> Saved:
        """What was written, without revisions and events."""
        ...

    def write(self, rows: Sequence[Row], events: Sequence[Event] = ()) -> None:
        """All of it or nothing. Events come in the order of their ids."""
        ...

    def revisions(self, app: str) -> list[Goal]:
        """The kept revisions of an application, oldest first."""
        ...

    def events(self, after: int, app: str | None, limit: int) -> list[Event]:
        """The newest events with an id above ``after``, oldest first."""
        ...

    def last_event(self) -> int:
        """The id of the newest event; 0 when there is none."""
        ...

    def clear(self) -> None:
        """Forgets everything."""
        ...

    def close(self) -> None:
        """Lets go of it."""
        ...


def revision_row(goal: Goal) -> Row:
    """The row that keeps a revision."""
    return Row("revision", f"{goal.spec.name}/{goal.revision:012}", goal)


class MemoryStore:
    """Keeps the encoded rows in a dict; lives as long as the object (inline engine, tests)."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], tuple[bytes, bytes]] = {}
        self._events: list[Event] = []

    def load(self) -> Saved:
        return _saved((kind, name, data, digest) for (kind, name), (data, digest) in self.rows.items())

    def write(self, rows: Sequence[Row], events: Sequence[Event] = ()) -> None:
        for row in rows:
            if row.value is None:
                self.rows.pop((row.kind, row.name), None)
            else:
                data = _encode(row.value)
                self.rows[row.kind, row.name] = (data, _digest(row.kind, row.name, data))
        self._events.extend(events)
        del self._events[:-EVENTS_MAX]
        for row in rows:
            if (most := _revisions_kept(row)) is not None:
                app = row.name.partition("/")[0]
                names = sorted(name for kind, name in self.rows if kind == "revision" and name.startswith(f"{app}/"))
                for name in names[:-most]:
                    del self.rows["revision", name]

    def revisions(self, app: str) -> list[Goal]:
        found = sorted(
            (kind, name, *value)
            for (kind, name), value in self.rows.items()
            if kind == "revision" and name.startswith(f"{app}/")
        )
        return _goals(found)

    def events(self, after: int, app: str | None, limit: int) -> list[Event]:
        found = [one for one in self._events if one.id > after and app in (None, one.app)]
        return found[max(0, len(found) - limit) :]

    def last_event(self) -> int:
        return self._events[-1].id if self._events else 0

    def clear(self) -> None:
        self.rows.clear()
        self._events.clear()

    def close(self) -> None:
        pass


class SqliteStore:
    """Keeps the rows in one SQLite file of a directory (0600). A torn file is set aside, and what can be read of it is
    the beginning of a new one."""

    def __init__(self, directory: str) -> None:
        self.path = os.path.join(directory, FILE)
        self._damaged: tuple[str, ...] = ()
        try:
            self._db = self._open()
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter out of SQLite's own message about it
            if _is_outside(error):
                raise
            self._begin_anew()

    def _open(self) -> sqlite3.Connection:
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(self.path, isolation_level=None, timeout=5.0)
        db.text_factory = lambda text: text.decode(errors="replace")  # a damaged name is one that no digest fits
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute(
                "CREATE TABLE IF NOT EXISTS rows"
                " (kind TEXT, name TEXT, data BLOB, digest BLOB, PRIMARY KEY (kind, name))"
            )
            db.execute("CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, app TEXT, data BLOB)")
            for columns in ("kind, name, data, digest FROM rows", "id, app, data FROM events"):
                db.execute(f"SELECT {columns} LIMIT 0")
        except BaseException:
            db.close()
            raise
        return db

    def _begin_anew(self) -> None:
        """The file is torn: it is set aside under another name, for whoever wants to look."""
        self._damaged = (self.path,)
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.path + suffix, f"{self.path}.damaged{suffix}")
        self._db = self._open()

    def load(self) -> Saved:
        try:
            whole = self._db.execute("PRAGMA integrity_check(1)").fetchall() == [("ok",)]
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if _is_outside(error):
                raise
            whole = False
        if not whole:
            self._salvage()
        found = self._db.execute("SELECT kind, name, data, digest FROM rows WHERE kind != 'revision' ORDER BY rowid")
        saved = _saved(found)
        return msgspec.structs.replace(saved, damaged=(*self._damaged, *saved.damaged))

    def _salvage(self) -> None:
        """Begins anew with what can still be read."""
        rows = self._readable("rows", "kind, name, data, digest")
        events = self._readable("events", "id, app, data")
        self._db.close()
        self._begin_anew()
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?)", rows)
            self._db.executemany("INSERT OR IGNORE INTO events VALUES (?, ?, ?)", events)

    def _readable(self, table: str, columns: str) -> list[tuple[Any, ...]]:
        """The rows of a torn table from both of its ends, up to where it is torn."""
        found: dict[int, tuple[Any, ...]] = {}
        for order in ("ASC", "DESC"):
            with contextlib.suppress(sqlite3.Error, UnicodeDecodeError):
                for rowid, *row in self._db.execute(f"SELECT rowid, {columns} FROM {table} ORDER BY rowid {order}"):
                    found[rowid] = tuple(row)
        return [found[rowid] for rowid in sorted(found)]

    def write(self, rows: Sequence[Row], events: Sequence[Event] = ()) -> None:
        if not rows and not events:
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for row in rows:
                self._write_row(row)
            self._db.executemany(
                "INSERT INTO events VALUES (?, ?, ?)", [(one.id, one.app, _encode(one)) for one in events]
            )
            if events and events[-1].id % EVENTS_SLACK < len(events):
                self._db.execute("DELETE FROM events WHERE id <= ?", (events[-1].id - EVENTS_MAX,))
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    def _write_row(self, row: Row) -> None:
        if row.value is None:
            self._db.execute("DELETE FROM rows WHERE kind = ? AND name = ?", (row.kind, row.name))
        else:
            data = _encode(row.value)
            values = (row.kind, row.name, data, _digest(row.kind, row.name, data))
            self._db.execute("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)", values)
        if (most := _revisions_kept(row)) is not None:
            app = row.name.partition("/")[0]
            self._db.execute(
                "DELETE FROM rows WHERE kind = 'revision' AND name IN (SELECT name FROM rows WHERE kind = 'revision'"
                " AND name BETWEEN ? AND ? ORDER BY name DESC LIMIT -1 OFFSET ?)",
                (f"{app}/", f"{app}/:", most),
            )

    def revisions(self, app: str) -> list[Goal]:
        found = self._db.execute(
            "SELECT kind, name, data, digest FROM rows WHERE kind = 'revision' AND name BETWEEN ? AND ? ORDER BY name",
            (f"{app}/", f"{app}/:"),  # ":" comes after the digits
        )
        return _goals(found)

    def events(self, after: int, app: str | None, limit: int) -> list[Event]:
        found = self._db.execute(
            "SELECT data FROM events WHERE id > ? AND (? IS NULL OR app = ?) ORDER BY id DESC LIMIT ?",
            (after, app, app, limit),
        ).fetchall()
        events = [_decoded(Event, data) for (data,) in reversed(found) if isinstance(data, bytes)]
        return [one for one in events if one is not None]

    def last_event(self) -> int:
        return int(self._db.execute("SELECT COALESCE(MAX(id), 0) FROM events").fetchone()[0])

    def clear(self) -> None:
        self._db.execute("DELETE FROM rows")
        self._db.execute("DELETE FROM events")

    def close(self) -> None:
        self._db.close()


def _revisions_kept(row: Row) -> int | None:
    """How many revisions of its application are kept after this row is written; None: it changes nothing about that."""
    if row.kind == "revision":
        return REVISIONS_MAX
    return 1 if row.kind == "goal" and row.value is None else None  # what is gone goes on counting should it come back


def _is_outside(error: Exception) -> bool:
    """Whether it is not the file that is wrong, but the disk, its rights or somebody who has it open."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    return code in (
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
    )


def _is_sound(kind: Any, name: Any, data: Any, digest: Any) -> bool:
    """Whether this is what was written."""
    return isinstance(data, bytes) and digest == _digest(str(kind), str(name), data)


def _digest(kind: str, name: str, data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16, key=f"{kind} {name}".encode()[:64]).digest()


def _saved(rows: Iterable[tuple[str, str, bytes, bytes]]) -> Saved:
    found: dict[str, dict[str, Any]] = {"goal": {}, "order": {}, "deployment": {}, "rest": {}, "revision": {}}
    damaged: list[str] = []
    for kind, name, data, digest in rows:
        value = _decoded(_types[kind], data) if kind in _types and _is_sound(kind, name, data, digest) else None
        if value is None:
            damaged.append(f"{kind} {name}")
        else:
            found[kind][name] = value
    rest: Rest = found["rest"].get(REST, Rest())
    memory = msgspec.structs.replace(rest.memory, deployments=found["deployment"])
    return Saved(found["goal"], found["order"], memory, rest.capacity, tuple(damaged))


def _goals(rows: Iterable[tuple[str, str, bytes, bytes]]) -> list[Goal]:
    """Of revisions those that can be read."""
    good = [data for kind, name, data, digest in rows if _is_sound(kind, name, data, digest)]
    return [goal for goal in (_decoded(Goal, data) for data in good) if goal is not None]


def _decoded(kind: type[T], data: bytes) -> T | None:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None  # written by another version of Skate
