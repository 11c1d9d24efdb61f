"""What the processes of an instance have printed, as records: picked, merged by time, and followed.

Law: a record begins with a line that has a time; what follows without one belongs to it, and what a process prints
before its first record has the time of that. A file that begins anew is read on in its former text first, so no line
is left out or shown twice as long as it does not do so twice between two looks.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import unquote

from skate.engine.output import FORMER, LOG, stem

TAIL_BYTES = 1 << 20  # of each file, where only the last lines are wanted
CHUNK = 1 << 18
LINE_BYTES_MAX = 1 << 16
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)[,.](\d{3})")  # as Python's logging writes it


@dataclass(frozen=True)
class Pick:
    """Which lines are wanted. ``since``: wall time."""

    app: str | None = None
    deployment: str | None = None
    replica: str | None = None
    request_id: str | None = None
    since: float | None = None

    def file(self, name: str) -> bool:
        """Whether a process whose file has this stem may have such lines."""
        if self.replica is not None:
            return name == stem(self.replica) or (self.replica.isdigit() and name.endswith(f"#{self.replica}"))
        if self.app is None and self.deployment is None:
            return True
        app, slash, rest = name.partition("%2F")
        if not slash:
            return self.deployment is None and name.startswith(f"{stem(f'build {self.app}')}@")
        own = rest.rpartition("#")[0]
        return self.app in (None, unquote(app)) and self.deployment in (None, unquote(own))

    def record(self, at: float | None, lines: Sequence[str]) -> bool:
        """Whether it is wanted."""
        if self.since is not None and at is not None and at < self.since:
            return False
        return self.request_id is None or any(_mentions(line, self.request_id) for line in lines)


def _mentions(line: str, id: str) -> bool:
    return id in line and re.search(rf"(?<![\w-]){re.escape(id)}(?![\w-])", line) is not None


def time_of(line: str) -> float | None:
    """The wall time at which a record begins; None for a line that goes on with the one before."""
    found = _STAMP.match(line)
    if found is None:
        return None
    try:
        return datetime.fromisoformat(f"{found[1]} {found[2]}.{found[3]}").timestamp()
    except ValueError:
        return None


def name_of(name: str) -> str:
    """The process's id, from the stem of its file."""
    return unquote(name)


@dataclass
class Record:
    """Lines of one process that belong together."""

    name: str
    at: float | None
    lines: list[str] = field(default_factory=list)


# -- what is there ------------------------------------------------------------------------------------


def stems(folder: str) -> list[str]:
    """The processes that have a log."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(name.removesuffix(LOG) for name in os.listdir(folder) if name.endswith(LOG))
    return []


def past(folder: str, pick: Pick, lines_max: int) -> tuple[list[Record], dict[str, int]]:
    """The last ``lines_max`` wanted lines of all files together, and how far each file was read."""
    records: list[Record] = []
    read_to: dict[str, int] = {}
    for name in stems(folder):
        if pick.file(name):
            text, read_to[name], changed_at = _text(folder, name, pick)
            records += [one for one in records_of(name, lines_of(text), changed_at) if pick.record(one.at, one.lines)]
    records.sort(key=lambda one: one.at or 0.0)
    return _last(records, lines_max), read_to


def lines_of(text: str) -> list[str]:
    """The lines, each without its end."""
    return [_at_its_end(line) for line in text.split("\n")[:-1]]


def _at_its_end(line: str) -> str:
    """Of a progress bar what it said last."""
    return line.rstrip("\r").rpartition("\r")[2]


def records_of(name: str, lines: Iterable[str], otherwise: float | None) -> list[Record]:
    """The records in the lines of one process; ``otherwise``: the time where no line has one."""
    records: list[Record] = []
    for line in lines:
        at = time_of(line)
        if at is not None or not records:
            records.append(Record(name, at))
        records[-1].lines.append(line)
    if records and records[0].at is None:
        records[0].at = records[1].at if len(records) > 1 else otherwise
    return records


def _text(folder: str, name: str, pick: Pick) -> tuple[str, int, float]:
    """What the file and the one before it say, as much as may be wanted."""
    everything = pick.since is not None or pick.request_id is not None
    before = b""
    if everything:
        with contextlib.suppress(OSError), open(os.path.join(folder, name + FORMER), "rb") as former:
            before = former.read()
    try:
        with open(os.path.join(folder, name + LOG), "rb") as file:
            seen = os.fstat(file.fileno())
            file.seek(0 if everything else max(0, seen.st_size - TAIL_BYTES))
            data = file.read()
            end = file.tell()
    except OSError:
        return "", 0, 0.0
    whole = data.rfind(b"\n") + 1  # a line without its end is still being written
    return (before + data[:whole]).decode(errors="replace"), end - len(data) + whole, seen.st_mtime


def _last(records: list[Record], lines_max: int) -> list[Record]:
    kept: list[Record] = []
    for one in reversed(records):
        if lines_max <= 0:
            break
        kept.append(Record(one.name, one.at, one.lines[-lines_max:]))
        lines_max -= len(one.lines)
    return kept[::-1]


# -- what comes ---------------------------------------------------------------------------------------


class Tail:
    """One file that grows, from ``offset`` on."""

    def __init__(self, folder: str, name: str, offset: int) -> None:
        self._name = name
        self._former = os.path.join(folder, name + FORMER)
        self._file = open(os.path.join(folder, name + LOG), "rb", buffering=0)  # noqa: SIM115 (close closes it)
        self._offset = offset
        self._half = b""
        self._wanted = False  # the record that the next line may belong to

    def news(self, pick: Pick) -> Iterator[str]:
        """The wanted lines that have been written since the last time."""
        for line in self._lines():
            if (at := time_of(line)) is not None:
                self._wanted = pick.record(at, [line])
            elif pick.request_id is None:
                self._wanted = True
            if self._wanted:
                yield line

    def _lines(self) -> Iterator[str]:
        if os.fstat(self._file.fileno()).st_size < self._offset:  # it has begun anew
            with contextlib.suppress(OSError), open(self._former, "rb") as former:
                former.seek(self._offset)
                yield from self._split(former.read())
            self._offset = 0
        self._file.seek(self._offset)
        while data := self._file.read(CHUNK):
            self._offset += len(data)
            yield from self._split(data)

    def _split(self, data: bytes) -> Iterator[str]:
        *lines, self._half = (self._half + data).split(b"\n")
        if len(self._half) > LINE_BYTES_MAX:
            lines.append(self._half)
            self._half = b""
        yield from (_at_its_end(line.decode(errors="replace")) for line in lines)

    def close(self) -> None:
        self._file.close()


class Follower:
    """All files of a folder, the new ones too. ``read_to``: what was shown already."""

    def __init__(self, folder: str, pick: Pick, read_to: dict[str, int]) -> None:
        self._folder = folder
        self._pick = pick
        self._read_to = read_to
        self._tails: dict[str, Tail] = {}

    def look(self, show: Callable[[str, str], None]) -> bool:
        """Shows what is new, with the process that said it; False when the folder is gone, after the last words."""
        there = os.path.isdir(self._folder)
        names = stems(self._folder)
        for name in names:
            if name not in self._tails and self._pick.file(name):
                with contextlib.suppress(OSError):
                    self._tails[name] = Tail(self._folder, name, self._read_to.get(name, 0))
        for name, tail in tuple(self._tails.items()):
            for line in tail.news(self._pick):
                show(name, line)
            if there and name not in names:
                self._tails.pop(name).close()
        return there

    def close(self) -> None:
        """Lets go of the files."""
        for tail in self._tails.values():
            tail.close()
