"""What the controller must not forget: what is wanted, the memory of its decisions, former revisions, what happened.

Law: a row that comes back damaged is reported and left out, never half believed; what was written is there after the
death of this process, and what belongs together is written together or not at all. Where the state outlives the
instance (``durable``), a wish is on the disk before it is answered; the rest follows when the system likes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from skate.controlplane.decide.values import DeploymentMemory, Goal, Memory, Order
from skate.core.specs import Event

T = TypeVar("T")

FILE = "state.db"
EVENTS_MAX = 10_000  # kept; older ones go
EVENTS_SLACK = 500  # more than that before the older ones are looked for
REVISIONS_MAX = 20  # kept of each application
WISHES = frozenset(("goal", "order"))  # what somebody was told is stored
MOMENTARY = frozenset(  # results of SQLite that say nothing about the file
    (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    )
)
SIDES = ("", "-wal", "-shm")  # the files that SQLite makes of one

ROWS = "rows (kind TEXT, name TEXT, data BLOB, digest BLOB, PRIMARY KEY (kind, name))"
EVENTS = "events (id INTEGER PRIMARY KEY, app TEXT, data BLOB, digest BLOB)"

Kind = Literal["goal", "order", "deployment", "rest", "revision"]
_encode = msgspec.msgpack.Encoder().encode


class Rest(msgspec.Struct, frozen=True):
    """What is no deployment's: the memory without its deployments, and the capacity that is wanted."""

    memory: Memory = Memory()
    capacity: float | None = None
    rising: bool = False


REST = "rest"  # the name of its row
_goal_decoder = msgspec.msgpack.Decoder(Goal)  # all made at import, in the supervisor: not by each next controller
_event_decoder = msgspec.msgpack.Decoder(Event)
_decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {
    "goal": _goal_decoder,
    "order": msgspec.msgpack.Decoder(Order),
    "deployment": msgspec.msgpack.Decoder(DeploymentMemory),
    "rest": msgspec.msgpack.Decoder(Rest),
    "revision": _goal_decoder,
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
    rising: bool = False
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

    def close(self) -> None:
        """Lets go of it."""
        ...


def revision_row(goal: Goal) -> Row:
    """The row that keeps a revision."""
    return Row("revision", f"{goal.spec.name}/{goal.revision:012}", replace(goal, retiring=(), former=None))


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

    def close(self) -> None:
        pass


class SqliteStore:
    """Keeps the rows in one SQLite file of a directory (0600).

    A torn file is set aside, what can be read of it is kept. What may pass (a full disk) raises and changes nothing.
    """

    def __init__(self, directory: str, *, durable: bool = False, file: str = FILE) -> None:
        """``durable``: what is wanted outlives the machine, at the price of waiting for the disk."""
        self.path = os.path.join(directory, file)
        self._durable = durable
        self._behind = False  # wishes are in the -wal that are not in the file
        self._damaged: tuple[str, ...] = ()
        there = os.path.exists(self.path)
        try:
            self._db = self._open(there)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter out of SQLite's own message about it
            if _momentary(error):
                raise
            self._begin_anew()

    def _open(self, there: bool = False) -> sqlite3.Connection:
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(self.path, isolation_level=None, timeout=5.0)
        db.text_factory = _text
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            if there and "rows" not in tables:
                self._damaged = (f"file {self.path} (it has nothing in it)",)
            elif there and (found := db.execute("PRAGMA integrity_check(1)").fetchone()) != ("ok",):
                raise sqlite3.DatabaseError(f"torn: {found}")
            for table in (ROWS, EVENTS):
                db.execute(f"CREATE TABLE IF NOT EXISTS {table}")
            for columns in ("kind, name, data, digest FROM rows", "id, app, data, digest FROM events"):
                db.execute(f"SELECT {columns} LIMIT 0")
            if self._durable:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")  # a file without its -wal is a file all the same
        except BaseException:
            db.close()
            raise
        return db

    def _begin_anew(self) -> None:
        """The file is torn: a new one with all that is whole takes its place, and it is kept for a look."""
        rows, events = _rescued(self.path)
        new = f"{self.path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        os.close(os.open(new, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        with contextlib.closing(sqlite3.connect(new)) as db, db:
            for table in (ROWS, EVENTS):
                db.execute(f"CREATE TABLE {table}")
            db.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", rows)
            db.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", events)
        for side in SIDES:
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.path + side, f"{self.path}.damaged{side}")
        os.replace(new, self.path)
        self._db = self._open()
        kept = f"{len(rows)} values of it could be read and are kept"
        self._damaged = (f"file {self.path} (set aside as {os.path.basename(self.path)}.damaged; {kept})",)

    def load(self) -> Saved:
        query = "SELECT kind, name, data, digest FROM rows WHERE kind != 'revision' ORDER BY rowid"
        try:
            found = self._db.execute(query).fetchall()
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if _momentary(error):
                raise
            self._db.close()
            self._begin_anew()
            found = self._db.execute(query).fetchall()
        saved = _saved(found)
        return msgspec.structs.replace(saved, damaged=(*self._damaged, *saved.damaged))

    def write(self, rows: Sequence[Row], events: Sequence[Event] = ()) -> None:
        if not rows and not events:
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for row in rows:
                self._write_row(row)
            self._db.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", map(_of_event, events))
            if events and events[-1].id % EVENTS_SLACK < len(events):
                self._db.execute("DELETE FROM events WHERE id <= ?", (events[-1].id - EVENTS_MAX,))
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise
        self._behind = self._behind or (self._durable and any(row.kind in WISHES for row in rows))
        self._settle()

    def _settle(self) -> None:
        """Brings wishes from the -wal into the file, on the disk.

        They are committed: where this fails (a full disk) they outlive this process, and the next write tries again.
        """
        if self._behind:
            with contextlib.suppress(sqlite3.Error):
                _, written, settled = self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                self._behind = written != settled

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
            "SELECT * FROM events WHERE id > ? AND (? IS NULL OR app = ?) ORDER BY id DESC LIMIT ?",
            (after, app, app, limit),
        ).fetchall()
        return [one for one in map(_event, reversed(found)) if one is not None]

    def last_event(self) -> int:
        return int(self._db.execute("SELECT COALESCE(MAX(id), 0) FROM events").fetchone()[0])

    def used(self) -> bool:
        """Whether anything was ever wanted of the instance whose state this is."""
        query = "SELECT EXISTS(SELECT 1 FROM rows WHERE kind NOT IN ('rest', 'deployment'))"
        return bool(self._db.execute(query).fetchone()[0])

    def drop(self, kind: Kind) -> None:
        """Drops all rows of a kind, readable or not."""
        self._db.execute("DELETE FROM rows WHERE kind = ?", (kind,))

    def close(self) -> None:
        self._db.close()


def _revisions_kept(row: Row) -> int | None:
    """How many revisions of its application are kept after this row is written; None: it changes nothing about that."""
    if row.kind == "revision":
        return REVISIONS_MAX
    return 1 if row.kind == "goal" and row.value is None else None  # what is gone goes on counting should it come back


def _momentary(error: Exception) -> bool:
    """Whether the same may work later."""
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in MOMENTARY


def _rescued(path: str) -> tuple[list[Any], list[Any]]:
    """The rows and events of a torn file that are whole: read from both ends up to the torn place."""
    rows: dict[Any, Any] = {}
    events: dict[Any, Any] = {}
    torn = (sqlite3.Error, UnicodeDecodeError)
    with contextlib.suppress(*torn), contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.text_factory = _text
        for order in ("ASC", "DESC"):
            for query, found in (("SELECT * FROM rows", rows), ("SELECT * FROM events", events)):
                with contextlib.suppress(*torn):
                    for row in db.execute(f"{query} ORDER BY rowid {order}"):
                        found[row[:2] if found is rows else row[0]] = row
    whole = [row for row in rows.values() if _is_whole(*row)]
    return whole, [row for row in events.values() if _event(row) is not None]


def _text(data: bytes) -> str:
    """Whatever stands there: what is damaged fits no digest."""
    return data.decode(errors="replace")


def _of_event(event: Event) -> tuple[int, str, bytes, bytes]:
    data = _encode(event)
    return event.id, event.app, data, _digest("event", str(event.id), data)


def _event(row: tuple[Any, ...]) -> Event | None:
    """The event of a row; None when it is damaged."""
    id, _, data, digest = row
    return _decoded(_event_decoder, data) if _is_whole("event", str(id), data, digest) else None


def _is_whole(kind: str, name: str, data: Any, digest: Any) -> bool:
    """Whether that was written so. In a torn file anything may be anything."""
    return isinstance(data, bytes) and digest == _digest(kind, name, data)


def _digest(kind: str, name: str, data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16, key=f"{kind} {name}".encode()[:64]).digest()


def _saved(rows: Iterable[tuple[str, str, bytes, bytes]]) -> Saved:
    found: dict[str, dict[str, Any]] = {"goal": {}, "order": {}, "deployment": {}, "rest": {}, "revision": {}}
    damaged: list[str] = []
    for kind, name, data, digest in rows:
        value = _decoded(_decoders[kind], data) if kind in _decoders and _is_whole(kind, name, data, digest) else None
        if value is None:
            damaged.append(f"{kind} {name}")
        else:
            found[kind][name] = value
    rest: Rest = found["rest"].get(REST, Rest())
    memory = msgspec.structs.replace(rest.memory, deployments=found["deployment"])
    return Saved(found["goal"], found["order"], memory, rest.capacity, rest.rising, tuple(damaged))


def _goals(rows: Iterable[tuple[str, str, bytes, bytes]]) -> list[Goal]:
    """Of revisions those that can be read."""
    good = [data for kind, name, data, digest in rows if _is_whole(kind, name, data, digest)]
    return [goal for goal in (_decoded(_goal_decoder, data) for data in good) if goal is not None]


def _decoded(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T | None:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None  # written by another version of Skate
