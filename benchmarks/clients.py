"""Clients that wrk is not: WebSocket echo, numbered requests, a load that does not wait for answers, slow readers.

Law: ``python -m benchmarks.clients KIND JSON`` runs one for a number of seconds in a process of its own and prints one
line of JSON; whatever the server does, it ends. It says what it saw and leaves the judgement to others. Times from the
monotonic clock, which is the same in all processes of the machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

import httptools
import uvloop

from benchmarks.stats import percentile

PATIENCE_S = 5.0  # for the last answers
HOST = "127.0.0.1"
CONNECTIONS_MAX = 512
TOLERANCE_S = 0.001  # requests sent closer to each other than this have no order
SLOW_BYTES, SLOW_EVERY_S = 65536, 0.1


class ClientError(Exception):
    """The server did something that this client cannot take for an answer."""


# -- one HTTP connection --------------------------------------------------------------------------


class Answer:
    """What came back."""

    __slots__ = ("body", "headers", "received", "status")

    def __init__(self, status: int, headers: dict[bytes, bytes], body: bytes, received: float) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.received = received


class Connection(asyncio.Protocol):
    """One request at a time; ``answered`` hears of each answer, or of None when the connection is gone."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.answered: Callable[[Answer | None], None] | None = None
        self._renew()

    def _renew(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def ask(self, request: bytes, answered: Callable[[Answer | None], None]) -> None:
        """Sends it."""
        self.answered = answered
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        answer = Answer(self._parser.get_status_code(), self._headers, b"".join(self._body), monotonic())
        self._renew()
        self._tell(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._tell(None)

    def _tell(self, answer: Answer | None) -> None:
        answered, self.answered = self.answered, None
        if answered is not None:
            answered(answer)


def request_of(port: int, path: str) -> bytes:
    """A GET."""
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n".encode()


async def connect(port: int) -> Connection:
    """A new one. Raises OSError."""
    _, connection = await asyncio.get_running_loop().create_connection(Connection, HOST, port)
    return connection


async def ask(connection: Connection, request: bytes) -> Answer | None:
    """One request and its answer; None when the connection went away."""
    answer: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
    connection.ask(request, lambda got: answer.done() or answer.set_result(got))  # type: ignore[func-returns-value]
    return await answer


# -- callers in a circle --------------------------------------------------------------------------


async def order(port: int, path: str, connections: int, seconds: float) -> dict[str, Any]:
    """So many callers, each sends again when it is answered; the body is the moment at which the handler began."""
    request = request_of(port, path)
    rows: list[tuple[float, float]] = []
    refused = 0
    began = monotonic()

    async def caller() -> None:
        nonlocal refused
        connection = await connect(port)
        while (sent := monotonic()) < began + seconds:
            answer = await ask(connection, request)
            if answer is not None and answer.status == 200:
                rows.append((sent, float(answer.body)))
            else:
                refused += 1
                connection = connection if connection.transport is not None else await connect(port)
                await asyncio.sleep(0.01)

    async with asyncio.timeout(seconds + PATIENCE_S):
        await asyncio.gather(*(caller() for _ in range(connections)))
    took = monotonic() - began
    return {"requests/s": len(rows) / took, "not answered": refused, **inversions(rows)}


def inversions(rows: list[tuple[float, float]], tolerance_s: float = TOLERANCE_S) -> dict[str, float]:
    """Of (sent, begun) pairs: how many were overtaken, and by how many.

    One is overtaken by another that was sent more than ``tolerance_s`` later and began more than that earlier. The
    share of those that were overtaken at all, in per cent, and the most overtakers of one.
    """
    if not rows:
        return {"overtaken %": 0.0, "overtakers, most": 0}
    overtakers = [
        sum(sent + tolerance_s < later and began < begun - tolerance_s for later, began in rows) for sent, begun in rows
    ]
    return {"overtaken %": 100 * sum(map(bool, overtakers)) / len(rows), "overtakers, most": max(overtakers)}


# -- arrivals that do not wait --------------------------------------------------------------------


def arrivals(rate: float, seconds: float, seed: int | None) -> list[float]:
    """Offsets in seconds: evenly spaced without a seed, else a Poisson process, the same for the same seed."""
    if seed is None:
        return [number / rate for number in range(int(rate * seconds))]
    chance = random.Random(seed)
    found, at = [], 0.0
    while (at := at + chance.expovariate(rate)) < seconds:
        found.append(at)
    return found


class Pool:
    """Connections that are used again; as many as are needed at once, up to a limit."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: deque[Connection] = deque()
        self._all = 0

    async def open(self, count: int) -> None:
        """Some in advance, so that the load does not begin with handshakes."""
        self._free.extend([await connect(self._port) for _ in range(count)])
        self._all = count

    def spare(self) -> Connection | None:
        """One that is open and unused."""
        while self._free:
            if (connection := self._free.pop()).transport is not None:
                return connection
            self._all -= 1
        return None

    async def take(self) -> Connection | None:
        """A connection; None when there are too many."""
        if (connection := self.spare()) is not None:
            return connection
        if self._all >= CONNECTIONS_MAX:
            return None
        self._all += 1
        try:
            return await connect(self._port)
        except OSError:
            self._all -= 1
            raise

    def give(self, connection: Connection) -> None:
        """Back; one that was closed is let go."""
        if connection.transport is None:
            self._all -= 1
        else:
            self._free.append(connection)


async def offered(
    port: int, paths: list[str], rate: float, seconds: float, seed: int | None = None, connections: int = 64
) -> dict[str, Any]:
    """Requests at their own times, whatever the server does; the paths in turn. Times count from when one was due."""
    pool = Pool(port)
    await pool.open(connections)
    requests = [request_of(port, path) for path in paths]
    good: list[float] = []
    received: list[float] = []
    refused: list[float] = []
    others: dict[str, int] = {}
    refusal: dict[str, str] = {}

    async def one(due: float, request: bytes) -> None:
        try:
            connection = await pool.take()
        except OSError as error:
            others[type(error).__name__] = others.get(type(error).__name__, 0) + 1
            return
        if connection is None:
            others["no connection left"] = others.get("no connection left", 0) + 1
            return
        answer = await ask(connection, request)
        pool.give(connection)
        if answer is not None and answer.status == 200:
            good.append(answer.received - due)
            received.append(answer.received)
        elif answer is not None and answer.status in (503, 429):
            refused.append(answer.received - due)
            refusal.update({name.decode(): value.decode() for name, value in answer.headers.items()})
            refusal["status"] = str(answer.status)
        else:
            name = "connection lost" if answer is None else f"status {answer.status}"
            others[name] = others.get(name, 0) + 1

    due = arrivals(rate, seconds, seed)
    began = monotonic() + 0.05
    tasks: list[asyncio.Task[None]] = []
    for number, offset in enumerate(due):
        if (left := began + offset - monotonic()) > 0:
            await asyncio.sleep(left)
        tasks.append(asyncio.create_task(one(began + offset, requests[number % len(requests)])))
    in_time = monotonic()
    await asyncio.wait(tasks, timeout=PATIENCE_S)
    return {
        "offered/s": len(due) / seconds,
        "good/s": sum(at <= began + seconds for at in received) / seconds,  # not those that the queue still held
        "answered": len(good),
        "refused/s": len(refused) / seconds,
        "late s": max(0.0, in_time - began - seconds),
        "unanswered": sum(not task.done() for task in tasks),
        **_times("admitted", good),
        **_times("refused", refused),
        "others": others,
        "refusal": refusal,
    }


def _times(name: str, seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    return {f"{name} p{percent} ms": percentile(seconds, percent) * 1000 for percent in (50, 99)}


# -- WebSocket ------------------------------------------------------------------------------------

MESSAGE = b"0123456789abcdef"


class Echoed(asyncio.Protocol):
    """One WebSocket with one message at a time on it, until ``until``."""

    def __init__(self, port: int, path: str, until: float, times: list[float], ended: asyncio.Future[None]) -> None:
        self._head = (
            f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ).encode()
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(MESSAGE))
        self._frame = bytes([0x81, 0x80 | len(MESSAGE)]) + mask + masked
        self._expected = bytes([0x81, len(MESSAGE)]) + MESSAGE
        self._until, self._times, self._ended = until, times, ended
        self._open = False
        self._data = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._head)

    def data_received(self, data: bytes) -> None:
        data = self._data = self._data + data
        if not self._open:
            head, found, data = data.partition(b"\r\n\r\n")
            if not found:
                return
            if head[9:12] != b"101":
                self._end(ClientError(f"no WebSocket: {head[:60]!r}"))
                return
            self._open = True
            self._data = data
            self._send()
        elif len(data) >= len(self._expected):
            self._data = b""
            now = monotonic()
            self._times.append(now - self._sent)
            if data != self._expected:
                self._end(ClientError(f"another message came back: {data[:40]!r}"))
            elif now < self._until:
                self._send()
            else:
                self._end(None)

    def _send(self) -> None:
        self._sent = monotonic()
        self._transport.write(self._frame)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error or ClientError("the server closed a WebSocket"))

    def _end(self, error: Exception | None) -> None:
        if not self._ended.done():
            if error is None:
                self._ended.set_result(None)
            else:
                self._ended.set_exception(error)
            self._transport.close()


async def websocket(port: int, path: str, connections: int, seconds: float) -> dict[str, Any]:
    """Text messages of 16 bytes there and back."""
    loop = asyncio.get_running_loop()
    times: list[float] = []
    began = monotonic()
    ends: list[asyncio.Future[None]] = []
    for _ in range(connections):
        ended: asyncio.Future[None] = loop.create_future()
        ends.append(ended)
        client = Echoed(port, path, began + seconds, times, ended)
        await loop.create_connection(lambda client=client: client, HOST, port)  # type: ignore[misc]
    async with asyncio.timeout(seconds + PATIENCE_S):
        await asyncio.gather(*ends)
    took = monotonic() - began
    return {
        "messages/s": len(times) / took,
        "p50 µs": percentile(times, 50) * 1e6,
        "p99 µs": percentile(times, 99) * 1e6,
        "count": len(times),
    }


# -- slow readers ---------------------------------------------------------------------------------


async def slow_readers(port: int, path: str, connections: int, seconds: float) -> dict[str, Any]:
    """So many clients that read a long body at 64 KB each tenth of a second, and then go away."""
    request = request_of(port, path)
    until = monotonic() + seconds

    async def reader() -> int:
        line = socket.socket()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BYTES)  # or the kernel reads in our place
        line.setblocking(False)
        await asyncio.get_running_loop().sock_connect(line, (HOST, port))
        read, write = await asyncio.open_connection(sock=line, limit=SLOW_BYTES)
        write.write(request)
        got = 0
        while monotonic() < until:
            try:
                data = await asyncio.wait_for(read.read(SLOW_BYTES), PATIENCE_S)
            except TimeoutError:
                break  # it counts by what it got until then
            if not data:
                break
            got += len(data)
            await asyncio.sleep(SLOW_EVERY_S)
        write.transport.abort()
        return got

    got = await asyncio.gather(*(reader() for _ in range(connections)))
    return {"read MB": sum(got) / 1e6, "readers that got something": sum(map(bool, got))}


KINDS: dict[str, Callable[..., Coroutine[Any, Any, dict[str, Any]]]] = {
    "order": order,
    "offered": offered,
    "websocket": websocket,
    "slow readers": slow_readers,
}


def main() -> None:
    """``python -m benchmarks.clients KIND JSON``"""
    kind, told = sys.argv[1], json.loads(sys.argv[2])
    try:
        seen = uvloop.run(KINDS[kind](**told))
    except (ClientError, OSError, TimeoutError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
