"""A proxy with all that is around it, in one loop: a real Router, fake replicas in memory, a hand-held client."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from skate.core.clock import SystemClock
from skate.core.specs import DeploymentTarget, HttpOptions, ReplicaTarget, Route, Snapshot
from skate.dataplane.proxy.app import Proxy
from skate.dataplane.proxy.server import HttpServer, bind, drain
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
    """Runs one coroutine for each call it gets, cancels it when the call is cancelled."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.address = f"memory:proxy-test-{next(_numbers)}"
        self.exchanges: list[Exchange] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.cancelled: list[str] = []
        self.listener: Listener | None = None

    def accept(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        task = asyncio.ensure_future(self.handler(exchange))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

        def cancel(reason: str) -> None:
            self.cancelled.append(reason)
            task.cancel()

        exchange.on_cancel = cancel

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
        self.proxy = Proxy(self.router, options, SystemClock())
        self.replicas: dict[str, Replica] = {}

    async def mount(self, apps: dict[str, Handler]) -> None:
        targets: dict[str, DeploymentTarget | None] = {}
        for prefix, handler in apps.items():
            self.replicas[prefix] = replica = Replica(handler)
            replica.listener = await listen(replica.address, replica.accept, f"replica {prefix}")
            limits = {"max_ongoing_requests": 100, "max_queued_requests": -1} | self.limits
            at = (ReplicaTarget("r", replica.address),)
            targets[f"app{prefix}/D"] = DeploymentTarget(f"app{prefix}", "D", replicas=at, **limits)
        routes = tuple(Route(prefix, f"app{prefix}", "D") for prefix in apps)
        self.router.apply(Snapshot(1, True, targets, routes))

    def balanced(self) -> bool:
        """Nothing is open any more and the counts add up."""
        return self.router.ledger.open == 0 and not self.proxy.open and not self.proxy.sockets

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
    apps: dict[str, Handler], options: HttpOptions | None = None, drain_s: float = LIMIT_S, **limits: Any
) -> AsyncIterator[tuple[World, int]]:
    """The same behind a real server on a free port."""
    async with world(apps, options, **limits) as made:
        server = HttpServer(made.proxy, bind("127.0.0.1", 0), made.options.keep_alive_timeout_s)
        serving = asyncio.ensure_future(server.until_stopped())
        try:
            yield made, server.port
        finally:
            await drain(made.proxy, server, serving, drain_s)


class Client:
    """The server's side of one ASGI request, by hand: what is put in is received, what is sent is kept."""

    def __init__(self, path: str = "/", method: str = "GET", headers: Any = (), **scope: Any) -> None:
        self.scope: dict[str, Any] = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": list(headers),
            "client": ("127.0.0.1", "4711"),
            "server": ("127.0.0.1", "8000"),
            **scope,
        }
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    def put(self, body: bytes, more: bool = False) -> None:
        self.inbox.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def leave(self) -> None:
        self.inbox.put_nowait({"type": "http.disconnect"})

    async def receive(self) -> dict[str, Any]:
        return await self.inbox.get()

    async def send(self, message: dict[str, Any]) -> None:
        await self.gate.wait()
        self.sent.append(message)

    async def run(self, proxy: Proxy) -> Client:
        async with asyncio.timeout(LIMIT_S):
            await proxy(self.scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return list(self.sent[0]["headers"])

    def header(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def complete(self) -> bool:
        return len(self.sent) > 1 and not self.sent[-1].get("more_body", False)


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
