"""A load that goes on while something is done to the servers: requests at a constant rate, each with its outcome.

Law: a request is sent when it is due, whatever became of those before it, and its time counts from when it was due;
what is not a 200 is a failure with its reason. ``python -m benchmarks.control_load JSON`` runs until its stdin closes,
at most ``seconds``, then writes all as JSON to the descriptor that it was given. Times are from the monotonic clock,
which is the same in all processes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any

import uvloop

from benchmarks.clients import PATIENCE_S, Answer, Connection, Pool, request_of
from benchmarks.stats import percentile

SECONDS_MAX = 60.0
READY_MAX_S = 20.0
CONNECTIONS = 64  # opened before the load begins
TEXT_MAX = 120  # of what a failed answer says
WARM_S = 1.0  # not counted: caches fill, connections open


@dataclass(frozen=True)
class Row:
    """One request: when it was due, how long until its whole answer, and why it failed ('' when it did not)."""

    due: float
    took: float
    failed: str = ""


@dataclass(frozen=True)
class Window:
    """The requests that were due in a span of time."""

    rows: tuple[Row, ...]

    def ms(self, percent: float) -> float:
        """A percentile of the answered ones, in milliseconds. ValueError when none was answered."""
        return percentile([row.took for row in self.rows if not row.failed], percent) * 1000

    @property
    def failures(self) -> Counter[str]:
        """How many failed, by reason."""
        return Counter(row.failed for row in self.rows if row.failed)

    @property
    def failed(self) -> int:
        return sum(self.failures.values())


class Seen:
    """All requests of one load."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = sorted(rows, key=lambda row: row.due)

    def between(self, begin: float, end: float) -> Window:
        """Those that were due in it, and those due before that were still open when it began."""
        return Window(tuple(row for row in self.rows if row.due < end and row.due + row.took >= begin))


class Load:
    """The generator in a process of its own, for a block; afterwards ``seen`` says all."""

    def __init__(self, port: int, path: str, rate: float, seconds: float = SECONDS_MAX) -> None:
        self._told = {"port": port, "path": path, "rate": rate, "seconds": min(seconds, SECONDS_MAX)}
        self.began = 0.0
        self.seen = Seen(())

    def __enter__(self) -> Load:
        pipe = subprocess.PIPE
        self._file = tempfile.TemporaryFile()
        told = json.dumps({**self._told, "out": self._file.fileno()})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.control_load", told],
            stdin=pipe,
            stdout=pipe,
            text=True,
            start_new_session=True,
            pass_fds=(self._file.fileno(),),
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.strip():
            self._end()
            raise RuntimeError("the load did not begin; its messages are above")
        self.began = float(line)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            self._end()
            if kind is None:
                self._file.seek(0)
                self.seen = Seen([Row(*row) for row in json.loads(self._file.read())])

    def _end(self) -> None:
        try:
            self._process.communicate(timeout=PATIENCE_S + READY_MAX_S)
        except BaseException:
            self._process.kill()
            self._process.communicate()
            raise


# -- the process ------------------------------------------------------------------------------------


class Steady:
    """Sends at a rate until it is told to stop, or its time is over."""

    def __init__(self, port: int, path: str, rate: float, seconds: float) -> None:
        self._port, self._rate, self._seconds = port, rate, seconds
        self._request = request_of(port, path)
        self._pool = Pool(port)
        self._open = 0
        self._all_ended = asyncio.Event()
        self.rows: list[tuple[float, float, str]] = []

    async def run(self, stop: asyncio.Event) -> None:
        """All of it. Prints when the first request is due."""
        await self._pool.open(CONNECTIONS)
        began = monotonic() + 0.01
        print(began, flush=True)
        number = 0
        while not stop.is_set() and (due := began + number / self._rate) < began + self._seconds:
            if (left := due - monotonic()) > 0:
                await asyncio.sleep(left)
            self._open += 1
            self._begin(due)
            number += 1
        try:
            async with asyncio.timeout(PATIENCE_S):
                while self._open:
                    self._all_ended.clear()
                    await self._all_ended.wait()
        except TimeoutError:
            self.rows += [(began, monotonic() - began, "no answer at all")] * self._open

    def _begin(self, due: float) -> None:
        connection = self._pool.spare()
        if connection is None:
            task = asyncio.get_running_loop().create_task(self._begin_anew(due))
            _tasks.add(task)
            task.add_done_callback(_tasks.discard)
        else:
            self._ask(due, connection)

    async def _begin_anew(self, due: float) -> None:
        try:
            connection = await self._pool.take()
        except OSError as error:
            self._end(due, type(error).__name__)
            return
        if connection is None:
            self._end(due, "too many connections are waiting")
        elif connection.transport is None:
            self._end(due, "connection lost at once")
        else:
            self._ask(due, connection)

    def _ask(self, due: float, connection: Connection) -> None:
        def answered(answer: Answer | None) -> None:
            self._pool.give(connection)
            self._end(due, reason(answer))

        connection.ask(self._request, answered)

    def _end(self, due: float, failed: str) -> None:
        self.rows.append((due, monotonic() - due, failed))
        self._open -= 1
        if not self._open:
            self._all_ended.set()


_tasks: set[asyncio.Task[Any]] = set()


def reason(answer: Answer | None) -> str:
    """Why this answer counts as a failure; '' if it does not."""
    if answer is None:
        return "connection lost"
    if answer.status == 200:
        return ""
    return f"{answer.status}: {answer.body.decode(errors='replace')[:TEXT_MAX]}"


async def _main(told: dict[str, Any]) -> list[tuple[float, float, str]]:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def heard() -> None:
        if not sys.stdin.buffer.read1(1):
            loop.remove_reader(sys.stdin.fileno())
            stop.set()

    loop.add_reader(sys.stdin.fileno(), heard)
    steady = Steady(**told)
    await steady.run(stop)
    return steady.rows


def main() -> None:
    """``python -m benchmarks.control_load JSON``"""
    gc.freeze()
    gc.disable()  # its pauses would be taken for the server's; what it makes is bounded in time
    told = json.loads(sys.argv[1])
    out = told.pop("out")
    try:
        rows = uvloop.run(_main(told))
    except OSError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    with open(out, "w", encoding="utf-8") as file:
        json.dump(rows, file)


if __name__ == "__main__":
    main()
