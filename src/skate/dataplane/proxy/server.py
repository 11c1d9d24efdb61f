"""The process of a proxy: binds the address, follows the controller, serves, drains. Entry: ``run``.

Law: the port is bound before anything else, so that a port in use is known at once and said in one sentence; requests
are taken up only when the first snapshot is there; what is in flight at the end gets ``DRAIN_MAX_S`` to finish.

Granian 2.8.7, embedded in our loop (all of it measured):
- its own binding takes only numeric addresses and reports a port in use as a stack trace, so we bind and hand it the
  socket, which it owns and closes from then on;
- stop() closes the listener and idle connections and waits for the requests in flight;
- ``header_read_timeout`` is also the time that an idle kept-alive connection lives; one that never sent anything is
  not timed out;
- at most 100 headers and about 400 KB of them (431, 400); malformed requests and bodies get 400 and end their own
  connection only; a header or a status from the application that HTTP does not know is another matter, see ``app``;
- ``backpressure`` is the number of connections it serves at once, further ones wait unaccepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import socket
from typing import TYPE_CHECKING, Any

import msgspec
from granian._granian import SocketHolder  # the only way to hand Granian a bound socket
from granian.constants import Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server

from skate.core.errors import AddressInUseError
from skate.core.specs import HttpOptions, ProxyConfig, ProxyReport
from skate.dataplane.proxy.app import DRAINING, Proxy
from skate.dataplane.router import Router
from skate.dataplane.uplink import Uplink

if TYPE_CHECKING:
    from skate.engine.base import Life

logger = logging.getLogger("skate.proxy")

BACKLOG = 2048  # connections the kernel holds until they are accepted
CONNECTIONS_MAX = 16_384  # served at once; idle kept-alive ones count
DRAIN_MAX_S = 10.0  # for requests in flight when the proxy is stopped
CUT_MAX_S = 1.0  # for the errors that the remaining ones are then told


class HttpServer(Server):
    """Granian on a socket of ours, without its banner, its logging set-up and its signal handlers."""

    def __init__(self, app: Any, listener: socket.socket, keep_alive_timeout_s: float) -> None:
        host, port = listener.getsockname()[:2]
        super().__init__(
            app,
            address=host,
            port=port,
            interface=Interfaces.ASGINL,
            backlog=BACKLOG,
            backpressure=CONNECTIONS_MAX,
            http1_settings=HTTP1Settings(header_read_timeout=max(1, round(keep_alive_timeout_s * 1000))),
            # incremental: a full dictConfig would close the handlers that the user's own logging has
            log_dictconfig={"incremental": True, "handlers": {}, "loggers": {}},
            log_level=LogLevels.error,
        )
        self.host: str = host
        self.port: int = port
        self._listener = listener

    def _init_shared_socket(self) -> None:
        make: Any = SocketHolder  # its stub lacks the constructor
        self._shd = make(self._listener.detach(), False, BACKLOG)

    async def until_stopped(self) -> None:
        """Serves until ``close()``, then until the last request in flight is answered."""
        await self.serve()

    def close(self) -> None:
        """Accepts no more connections, ends idle ones."""
        self.signal_handler_interrupt()  # type: ignore[no-untyped-call]


def bind(host: str, port: int, share: bool = False) -> socket.socket:
    """A socket that listens on the address. ``share``: other proxies listen on the same one.

    Raises AddressInUseError, for whatever reason the address cannot be had; its text names address, cause and way out.
    """
    if not 0 <= port <= 65_535:  # the system would take it modulo 65536
        raise AddressInUseError(f"HTTP cannot be served on port {port}: choose one from 0 (any free one) to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise AddressInUseError(
            f"HTTP cannot be served on host {host!r}: the name leads to no address ({error}); "
            "use 127.0.0.1 for this machine only or 0.0.0.0 for all its addresses"
        ) from None
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)  # "localhost" means 127.0.0.1 before ::1
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise AddressInUseError(f"HTTP cannot be served on {host}:{port}: {_why(error, port)}") from None
    return listener


def _why(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another process uses this port; stop that one, or choose another port (port 0 takes any free one)"
    if isinstance(error, PermissionError):
        return f"port {port} is reserved for the system administrator; choose one from 1024 on"
    return f"{error.strerror or error}; choose an address of this machine, 127.0.0.1 or 0.0.0.0"


async def run(config: bytes, life: Life) -> None:
    """Serves HTTP as a ProxyConfig says, until ``life.stopping`` is set."""
    told = msgspec.msgpack.decode(config, type=ProxyConfig)
    name = told.id if told.id.startswith("proxy") else f"proxy {told.id}"
    if not life.inline:
        spare_the_collector()
    router = Router(name, life.clock)
    uplink = Uplink(told.controller, name, router, life.clock)
    uplink.start()
    try:
        listener = bind(told.http.host, told.http.port, told.share_port)
    except AddressInUseError as error:
        report = ProxyReport(told.id, "failed", os.getpid(), told.http.host, told.http.port, str(error))
        await uplink.told("report_proxy", report)
        await uplink.close()
        return
    try:
        await _serve(told.id, told.http, listener, uplink, life)
    finally:
        listener.close()
        await router.close()
        await uplink.close()


def spare_the_collector() -> None:
    """Lets the garbage collector look at a serving process rarely: 10 % less CPU for each request (measured).

    What a request leaves behind is freed by reference counting; the collector only ever walks what is still in flight.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


async def _serve(id: str, options: HttpOptions, listener: socket.socket, uplink: Uplink, life: Life) -> None:
    router = uplink.router
    proxy = Proxy(router, options, life.clock)
    stopping = asyncio.ensure_future(life.stopping.wait())
    known = asyncio.ensure_future(router.known.wait())
    await asyncio.wait([stopping, known], return_when=asyncio.FIRST_COMPLETED)
    known.cancel()
    if stopping.done():
        return
    server = HttpServer(proxy, listener, options.keep_alive_timeout_s)
    serving = asyncio.ensure_future(server.until_stopped())
    uplink.report("report_proxy", ProxyReport(id, "ready", os.getpid(), options.host, server.port))
    await asyncio.wait([stopping, serving], return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        stopping.cancel()
        serving.result()
        raise RuntimeError(f"the HTTP server on {server.host}:{server.port} ended by itself")
    await drain(proxy, server, serving)


async def drain(proxy: Proxy, server: HttpServer, serving: asyncio.Future[None], limit_s: float = DRAIN_MAX_S) -> None:
    """Takes no more requests, lets those in flight finish, and ends at ``limit_s`` those that have not.

    WebSockets are closed first: they do not end by themselves, and Granian freezes them when it is told to stop.
    """
    proxy.draining = True
    sockets = [task for task in proxy.sockets.values() if task is not None]
    proxy.end(proxy.sockets, DRAINING)
    if sockets:
        await asyncio.wait(sockets, timeout=CUT_MAX_S)
    server.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            await asyncio.shield(serving)
        return
    logger.warning("%d requests are cut: they took longer than %s s after the stop", len(proxy.open), limit_s)
    proxy.end(proxy.open, DRAINING)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CUT_MAX_S):
            await serving
