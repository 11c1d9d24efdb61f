"""A proxy with all that is around it, in one loop: a real Router, fake replicas in memory, real sockets in front."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from skate.core.clock import SystemClock
from skate.core.specs import DeploymentTarget, HttpOptions, ReplicaTarget, Route, Snapshot
from skate.dataplane.proxy.address import bind
from skate.dataplane.proxy.front import Front
from skate.dataplane.proxy.server import drain
from skate.dataplane.proxy.server import listen as serve
from skate.dataplane.replica.slots import PARKED, REFUSED, Slots
from skate.dataplane.router import Router
from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.transport.peers import Listener, listen
from skate.dataplane.wire.head import ReplyHead

LIMIT_S = 5.0  # for anything a test waits for
TEXT = (b"content-type", b"text/plain")

Handler = Callable[[Exchange], Awaitable[None]]
_numbers = itertools.count()


async def until(true: Callable[[], Any]) -> None:
    """Waits for a state of the world."""
    async with asyncio.timeout(LIMIT_S):
        while not true():
            await asyncio.sleep(0.002)


class Replica:
    """Runs one coroutine for each call that has a slot, cancels it when the call is cancelled."""

    def __init__(self, handler: Handler, limit: int) -> None:
        self.handler = handler
        self.slots: Slots[Exchange] = Slots(limit, lambda session: session.grant(1), self.begin)  # type: ignore[attr-defined]
        self.address = f"memory:proxy-test-{next(_numbers)}"
        self.exchanges: list[Exchange] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.cancelled: list[str] = []
        self.listener: Listener | None = None

    async def start(self, prefix: str) -> None:
        self.listener = await listen(self.address, self.accept, f"replica {prefix}")
        self.listener.listening.on_release = self.slots.release
        self.listener.listening.on_session_lost = self.slots.forget

    def accept(self, exchange: Exchange) -> None:
        verdict = self.slots.offer(exchange.session, exchange, exchange.granted, exchange.ahead)
        if verdict == REFUSED:
            exchange.refuse()
        elif verdict == PARKED:
            exchange.on_cancel = lambda *why: self.slots.withdraw(exchange)

    def begin(self, exchange: Exchange) -> None:
        exchange.begin()
        self.exchanges.append(exchange)
        task = asyncio.ensure_future(self.handler(exchange))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        task.add_done_callback(lambda _: self.slots.free())

        def cancel(reason: str, cause: str) -> None:
            self.cancelled.append(reason)
            task.cancel()

        def forget(_: object) -> None:
            exchange.on_cancel = None

        exchange.on_cancel = cancel
        task.add_done_callback(forget)

    async def close(self) -> None:
        if self.listener is not None:
            await self.listener.close()
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class World:
    """A router whose applications are given as prefix to handler."""

    def __init__(self, options: HttpOptions, **limits: Any) -> None:
        self.options = options
        self.limits = limits
        self.router = Router("proxy 0", SystemClock())
        self.front = Front(self.router, options, SystemClock())
        self.port = 0
        self.server: asyncio.Server | None = None
        self.replicas: dict[str, Replica] = {}

    async def mount(self, apps: dict[str, Handler]) -> None:
        targets: dict[str, DeploymentTarget | None] = {}
        for prefix, handler in apps.items():
            limits = {"max_ongoing_requests": 100, "max_queued_requests": -1} | self.limits
            self.replicas[prefix] = replica = Replica(handler, limits["max_ongoing_requests"])
            await replica.start(prefix)
            at = (ReplicaTarget("r", replica.address),)
            targets[f"app{prefix}/D"] = DeploymentTarget(f"app{prefix}", "D", replicas=at, **limits)
        routes = tuple(Route(prefix, f"app{prefix}", "D") for prefix in apps)
        self.router.apply(Snapshot(1, True, targets, routes))

    def balanced(self) -> bool:
        """Nothing is open any more and the counts add up."""
        return self.router.ledger.open == 0 and self.front.busy == 0

    async def close(self) -> None:
        await self.router.close()
        for replica in self.replicas.values():
            await replica.close()


@asynccontextmanager
async def world(
    apps: dict[str, Handler] | None = None, options: HttpOptions | None = None, **limits: Any
) -> AsyncIterator[World]:
    made = World(options or HttpOptions(), **limits)
    try:
        if apps is not None:
            await made.mount(apps)
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def served(
    apps: dict[str, Handler] | None, options: HttpOptions | None = None, drain_s: float = LIMIT_S, **limits: Any
) -> AsyncIterator[World]:
    """The same behind a free port of the loopback."""
    async with world(apps, options, **limits) as made:
        listener = bind("127.0.0.1", 0)
        made.port = listener.getsockname()[1]
        made.server = server = await serve(made.front, listener)
        try:
            yield made
        finally:
            await drain(made.front, server, drain_s)
            assert not made.front.connections
            assert not made.front.sockets


@dataclass
class Reply:
    """One answer as it came. ``complete`` is False if the connection ended inside it."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    complete: bool = True
    pieces: list[bytes] = field(default_factory=list)  # the chunks of a chunked body

    @property
    def text(self) -> str:
        return self.body.decode()

    def header(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]


class Client:
    """One TCP connection that speaks HTTP as literally as a test wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def request(self, target: str = "/", method: str = "GET", body: bytes = b"", headers: Any = ()) -> None:
        """Sends a request; its body has a length unless a header says otherwise."""
        names = {name.lower() for name, _ in headers}
        lines = [f"{method} {target} HTTP/1.1".encode(), b"Host: test"]
        lines += [b"%b: %b" % pair for pair in headers]
        if (body or method == "POST") and not names & {b"content-length", b"transfer-encoding"}:
            lines.append(b"Content-Length: %d" % len(body))
        self.send(b"\r\n".join(lines) + b"\r\n\r\n" + body)

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """Shuts the sending side."""
        self.writer.write_eof()

    async def head(self) -> Reply:
        """The next status line and headers."""
        async with asyncio.timeout(LIMIT_S):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[:-2]
        assert lines[0].startswith(b"HTTP/1.1 "), lines
        pairs = [line.partition(b": ") for line in lines[1:]]
        return Reply(int(lines[0].split(b" ")[1]), [(name.lower(), value) for name, _, value in pairs])

    async def reply(self, is_head: bool = False) -> Reply:
        """The next answer."""
        reply = await self.head()
        if is_head or reply.status in (101, 204, 304) or reply.status == 100:
            return reply
        async with asyncio.timeout(LIMIT_S):
            try:
                await self._body(reply)
            except asyncio.IncompleteReadError as error:
                reply.body = b"".join(reply.pieces) + error.partial
                reply.complete = False
        return reply

    async def _body(self, reply: Reply) -> None:
        if length := reply.header(b"content-length"):
            assert not reply.header(b"transfer-encoding")
            reply.body = await self.reader.readexactly(int(length[0]))
        elif reply.header(b"transfer-encoding"):
            try:
                while size := int((await self.reader.readuntil(b"\r\n"))[:-2], 16):
                    reply.pieces.append(await self.reader.readexactly(size))
                    assert await self.reader.readexactly(2) == b"\r\n"
                assert await self.reader.readexactly(2) == b"\r\n"
            finally:
                reply.body = b"".join(reply.pieces)
        else:
            reply.body = await self.reader.read(-1)

    async def piece(self) -> bytes:
        """The next chunk of a chunked answer whose head was taken with ``head``."""
        async with asyncio.timeout(LIMIT_S):
            size = int((await self.reader.readuntil(b"\r\n"))[:-2], 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def closed(self) -> bytes:
        """What else comes until the server closes."""
        async with asyncio.timeout(LIMIT_S):
            try:
                return await self.reader.read(-1)
            except ConnectionError:
                return b""

    async def ask(self, target: str = "/", method: str = "GET", body: bytes = b"", headers: Any = ()) -> Reply:
        self.request(target, method, body, headers)
        return await self.reply(method == "HEAD")

    def leave(self) -> None:
        self.writer.close()


@asynccontextmanager
async def dial(made: World) -> AsyncIterator[Client]:
    """A connection to the proxy."""
    client = Client(*await asyncio.open_connection("127.0.0.1", made.port, limit=1 << 20))
    try:
        yield client
    finally:
        client.leave()


async def ask(made: World, target: str = "/", method: str = "GET", body: bytes = b"", headers: Any = ()) -> Reply:
    """One request on a connection of its own."""
    async with dial(made) as client:
        return await client.ask(target, method, body, headers)


async def hello(exchange: Exchange) -> None:
    exchange.reply_http(ReplyHead(200, [TEXT]), b"hello")


async def forever(exchange: Exchange) -> None:
    await asyncio.Event().wait()


async def whole_body(exchange: Exchange) -> bytes:
    body = exchange.body
    while (chunk := await exchange.receive()) is not None:
        body += chunk
    return body


async def echo(exchange: Exchange) -> None:
    exchange.reply_http(ReplyHead(200, [TEXT]), await whole_body(exchange))
