"""The process of the REST API: binds the address, says so, serves, ends. Entry: ``run``.

Law: a port that is taken is said, and the process ends; the instance goes on, and the controller starts it again,
slower and slower. The HTTP server is the proxy's own front, over one "deployment" in this process: it is in memory
already, was fuzzed, and has a limit on the size and the time of heads, bodies and answers. uvicorn would be 3 MB and
40 ms more (measured), and gives neither a head nor a body nor a slow reader a time: a few idle sockets would fill it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import sys
from typing import TYPE_CHECKING

import msgspec
from starlette.types import ASGIApp

from skate.admin.api import Api
from skate.admin.app import build
from skate.admin.body import BODY_MAX
from skate.admin.line import Line
from skate.controlplane.client import BUILD_TIMEOUT_S
from skate.core.admin_options import is_loopback
from skate.core.errors import AddressInUseError, MethodNotFoundError, RequestCancelledError
from skate.core.specs import (
    AdminConfig,
    AdminOptions,
    DeploymentTarget,
    HttpOptions,
    ProxyReport,
    ReplicaTarget,
    Route,
    Snapshot,
)
from skate.dataplane.proxy.address import bind
from skate.dataplane.proxy.connection import Connection
from skate.dataplane.proxy.front import Front
from skate.dataplane.proxy.server import drain
from skate.dataplane.proxy.server import listen as serve
from skate.dataplane.replica.asgi import serve_http
from skate.dataplane.router import Router
from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.transport.peers import listen
from skate.dataplane.wire.head import HTTP, decode_http

if TYPE_CHECKING:
    from skate.engine.base import Life

logger = logging.getLogger("skate.admin")

CONNECTIONS_MAX = 256  # open at once; idle ones are closed soon
KEEP_ALIVE_S = 5.0
REQUESTS_MAX = 16  # worked on at once
QUEUE_MAX = 64  # that wait for their turn; more get 503
REQUEST_S = BUILD_TIMEOUT_S + 60.0  # for all of a request; a plan takes as long as the builds
DRAIN_S = 1.0  # for requests in flight when the server is stopped: none of them must be finished
APP, DEPLOYMENT = "skate", "admin"
_numbers = itertools.count(1)


async def run(config: bytes, life: Life) -> None:
    """Serves the REST API as an AdminConfig says, until ``life.stopping`` is set."""
    told = msgspec.msgpack.decode(config, type=AdminConfig)
    line = Line(told.controller, "admin", life.clock)
    line.start()
    try:
        listener = _bound(told.admin)
    except AddressInUseError as error:
        options = told.admin
        await line.told(ProxyReport(told.id, "failed", os.getpid(), options.host, options.port, str(error)))
        await line.close()
        return
    try:
        await _serve(told, listener, line, life)
    finally:
        listener.close()
        await line.close()


def _bound(options: AdminOptions) -> socket.socket:
    listener = bind(options.host, options.port)
    address = listener.getsockname()[0]
    if options.token is None and not is_loopback(address):
        listener.close()
        raise AddressInUseError(
            f"the REST API has no token, and {options.host} leads to {address}, which others can reach; "
            "listen on 127.0.0.1, or set a token"
        )
    return listener


async def _serve(told: AdminConfig, listener: socket.socket, line: Line, life: Life) -> None:
    version = str(vars(sys.modules["skate"]).get("__version__", "unknown"))
    api = Api(line.controller, life.clock, told.http, os.getcwd())
    desk = Desk(build(api, told.admin.token, version))
    address = f"memory:admin-{os.getpid()}-{next(_numbers)}"
    inside = await listen(address, desk.accept, "admin")
    router = Router("admin", life.clock)
    try:
        router.apply(_snapshot(address))
        options = HttpOptions(told.admin.host, told.admin.port, "", REQUEST_S, KEEP_ALIVE_S, BODY_MAX)
        front = AdminFront(router, options, life.clock)
        server = await serve(front, listener)
        port = listener.getsockname()[1]
        line.report(ProxyReport(told.id, "ready", os.getpid(), told.admin.host, port))
        await life.stopping.wait()
        await drain(front, server, DRAIN_S)
    finally:
        await router.close()
        await inside.close()
        await desk.close()


def _snapshot(address: str) -> Snapshot:
    """What the router goes by: everything goes to this process, so many requests at once."""
    target = DeploymentTarget(APP, DEPLOYMENT, REQUESTS_MAX, QUEUE_MAX, (ReplicaTarget("admin", address),))
    return Snapshot(1, True, {target.key: target}, (Route("/", APP, DEPLOYMENT),))


class AdminFront(Front):
    """A front that needs few connections, and so takes few."""

    def enter(self, connection: Connection) -> bool:
        """A connection was opened. False: it may not stay."""
        return len(self.connections) < CONNECTIONS_MAX and super().enter(connection)


class Desk:
    """Takes calls of the router and lets the ASGI application answer them, each in a task of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, exchange: Exchange) -> None:
        """Begins a call; how many there are at once is the router's limit."""
        if exchange.head.kind != HTTP:
            exchange.fail(MethodNotFoundError("the REST API has no WebSockets"))
            return
        exchange.begin()
        visit = Visit(exchange)
        task = asyncio.get_running_loop().create_task(self._answer(visit))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        exchange.on_cancel = lambda *why: visit.leave(task)

    async def _answer(self, visit: Visit) -> None:
        exchange = visit.exchange
        try:
            await serve_http(self._app, decode_http(exchange.head.http), visit, exchange)
        except asyncio.CancelledError:
            exchange.fail(RequestCancelledError("the REST API ends", "shutting_down"))
        except Exception as error:
            if visit.cancel_reason is None:
                logger.exception("a request failed")
            exchange.fail(error)
        finally:
            exchange.on_cancel = None

    async def close(self) -> None:
        """Ends what is still under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Visit:
    """The client's side of one request, as the ASGI bridge asks for it."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.body = exchange.body
        self.whole = exchange.complete
        self._left = asyncio.Event()
        exchange.on_end = self._left.set

    @property
    def cancel_reason(self) -> str | None:
        return self.exchange.cancel_reason

    @property
    def complete(self) -> bool:
        return self.exchange.complete

    async def receive(self) -> bytes | None:
        return await self.exchange.receive()

    async def gone(self) -> None:
        await self._left.wait()

    def leave(self, task: asyncio.Task[None]) -> None:
        """The client is gone: what was asked for it is not needed."""
        task.cancel()
