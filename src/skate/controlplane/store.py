"""What the controller must not forget: the wanted applications and the memory of its decisions.

Law: a row that comes back damaged is reported and left out, never half believed; what was put is there after the
death of this process. It need not outlive the machine: the instance does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Iterable
from typing import Literal, Protocol, TypeVar

import msgspec

from skate.controlplane.decide.values import Goal, Memory

T = TypeVar("T")

FILE = "state.db"
MEMORY_ROW = "memory"
Kind = Literal["goal", "memory"]
_encoder = msgspec.msgpack.Encoder()
_goal_decoder = msgspec.msgpack.Decoder(Goal)
_memory_decoder = msgspec.msgpack.Decoder(Memory)


class Saved(msgspec.Struct, frozen=True):
    """Everything in a store. ``damaged`` names what was there and could not be read."""

    goals: dict[str, Goal] = {}
    memory: Memory = Memory()
    damaged: tuple[str, ...] = ()


class Store(Protocol):
    """Where wanted applications and memory are kept."""

    def load(self) -> Saved: ...
    def put_goal(self, goal: Goal) -> None: ...
    def drop_goal(self, name: str) -> None: ...
    def put_memory(self, memory: Memory) -> None: ...
    def clear(self) -> None: ...
    def close(self) -> None: ...


class MemoryStore:
    """Keeps the encoded rows in a dict; lives as long as the object (inline engine, tests)."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], tuple[bytes, bytes]] = {}

    def load(self) -> Saved:
        return _saved((kind, name, data, digest) for (kind, name), (data, digest) in self.rows.items())

    def put_goal(self, goal: Goal) -> None:
        self._put("goal", goal.spec.name, goal)

    def put_memory(self, memory: Memory) -> None:
        self._put("memory", MEMORY_ROW, memory)

    def drop_goal(self, name: str) -> None:
        self.rows.pop(("goal", name), None)

    def clear(self) -> None:
        self.rows.clear()

    def close(self) -> None:
        pass

    def _put(self, kind: Kind, name: str, value: Goal | Memory) -> None:
        data = _encoder.encode(value)
        self.rows[kind, name] = (data, _digest(kind, name, data))


class SqliteStore:
    """Keeps the rows in one SQLite file of the runtime directory (0600)."""

    def __init__(self, runtime_dir: str) -> None:
        self.path = os.path.join(runtime_dir, FILE)
        self._damaged: tuple[str, ...] = ()
        try:
            self._db = self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            self._damaged = (self.path,)
            self._remove()
            self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(self.path, isolation_level=None, timeout=5.0)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute(
                "CREATE TABLE IF NOT EXISTS rows"
                " (kind TEXT, name TEXT, data BLOB, digest BLOB, PRIMARY KEY (kind, name))"
            )
        except BaseException:
            db.close()
            raise
        return db

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path + suffix)

    def load(self) -> Saved:
        try:
            found = self._db.execute("SELECT kind, name, data, digest FROM rows ORDER BY rowid").fetchall()
        except sqlite3.DatabaseError:
            self._db.close()
            self._remove()
            self._db = self._open()
            return Saved(damaged=(self.path,))
        saved = _saved(found)
        return msgspec.structs.replace(saved, damaged=(*self._damaged, *saved.damaged))

    def put_goal(self, goal: Goal) -> None:
        self._put("goal", goal.spec.name, goal)

    def put_memory(self, memory: Memory) -> None:
        self._put("memory", MEMORY_ROW, memory)

    def drop_goal(self, name: str) -> None:
        self._db.execute("DELETE FROM rows WHERE kind = 'goal' AND name = ?", (name,))

    def clear(self) -> None:
        self._db.execute("DELETE FROM rows")

    def close(self) -> None:
        self._db.close()

    def _put(self, kind: Kind, name: str, value: Goal | Memory) -> None:
        data = _encoder.encode(value)
        row = (kind, name, data, _digest(kind, name, data))
        self._db.execute("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)", row)


def _digest(kind: str, name: str, data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16, key=f"{kind} {name}".encode()[:64]).digest()


def _saved(rows: Iterable[tuple[str, str, bytes, bytes]]) -> Saved:
    goals: dict[str, Goal] = {}
    memory = Memory()
    damaged: list[str] = []
    for kind, name, data, digest in rows:
        if digest != _digest(kind, name, data):
            damaged.append(f"{kind} {name}")
        elif kind == "goal":
            goal = _decoded(_goal_decoder, data)
            if goal is None:
                damaged.append(f"{kind} {name}")
            else:
                goals[name] = goal
        else:
            found = _decoded(_memory_decoder, data)
            if found is None:
                damaged.append(kind)
            else:
                memory = found
    return Saved(goals, memory, tuple(damaged))


def _decoded(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T | None:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None  # written by another version of Skate
