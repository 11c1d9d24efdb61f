"""The process of a proxy: binds the address, follows the controller, serves, drains. Entry: ``run``.

Law: the port is bound before anything else, so that a port in use is known at once and said in one sentence;
connections are accepted when the first snapshot is there; what is in flight at the end gets ``DRAIN_MAX_S`` to finish.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import socket
from typing import TYPE_CHECKING

import msgspec

from skate.core.errors import AddressInUseError
from skate.core.specs import HttpOptions, ProxyConfig, ProxyReport
from skate.dataplane.proxy.address import BACKLOG, bind
from skate.dataplane.proxy.front import CONNECTIONS_MAX, Front
from skate.dataplane.router import Router
from skate.dataplane.uplink import Uplink

if TYPE_CHECKING:
    from skate.engine.base import Life

logger = logging.getLogger("skate.proxy")

DRAIN_MAX_S = 4.0  # for requests in flight when the proxy is stopped; the controller kills it after 5
LAST_REQUEST_S = (
    0.1  # for requests that are on their way on idle connections: a client that is at work sends one by then
)
CUT_MAX_S = 0.5  # for the errors that the remaining ones are then told
FILES_MORE = 1000  # descriptors that a proxy needs beside its connections

_config_decoder = msgspec.msgpack.Decoder(ProxyConfig)  # made once, in the supervisor


async def listen(front: Front, listener: socket.socket) -> asyncio.Server:
    """Accepts connections on the bound socket, which the server owns from then on."""
    return await front.loop.create_server(front.connect, sock=listener, backlog=BACKLOG)


async def run(config: bytes, life: Life) -> None:
    """Serves HTTP as a ProxyConfig says, until ``life.stopping`` is set."""
    told = _config_decoder.decode(config)
    name = told.id if told.id.startswith("proxy") else f"proxy {told.id}"
    if not life.inline:
        spare_the_collector()
        allow_files()
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


def allow_files() -> None:
    """Lets this process have as many connections as it is willing to hold, if the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS_MAX + FILES_MORE
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve(id: str, options: HttpOptions, listener: socket.socket, uplink: Uplink, life: Life) -> None:
    front = Front(uplink.router, options, life.clock)
    front.metrics = uplink.metrics
    stopping = asyncio.ensure_future(life.stopping.wait())
    known = asyncio.ensure_future(uplink.router.known.wait())
    try:
        await asyncio.wait([stopping, known], return_when=asyncio.FIRST_COMPLETED)
        if stopping.done():
            return
        port = listener.getsockname()[1]
        server = await listen(front, listener)
        uplink.report("report_proxy", ProxyReport(id, "ready", os.getpid(), options.host, port))
        await stopping
        await drain(front, server)
    finally:
        stopping.cancel()
        known.cancel()


async def drain(front: Front, server: asyncio.Server, limit_s: float = DRAIN_MAX_S) -> None:
    """Takes no more connections, lets requests in flight finish, and ends at ``limit_s`` those that have not.

    A connection that is idle stays open for a moment: a request that is on its way on it would be lost. Its answer,
    like all from now on, says that the connection closes.
    """
    await _stop_listening(front, server)
    front.drain()
    if await _emptied(front, min(limit_s, LAST_REQUEST_S)):
        return
    front.close_idle()
    if await _emptied(front, limit_s):
        return
    if front.busy:
        logger.warning("%d requests are cut: they took longer than %s s after the stop", front.busy, limit_s)
    front.cut()
    await _emptied(front, CUT_MAX_S)
    front.close()
    await _emptied(front, CUT_MAX_S)


async def _stop_listening(front: Front, server: asyncio.Server) -> None:
    """Closes the port, and takes in who waits in the kernel's queue for it: closing alone would reset them."""
    copies = [socket.fromfd(one.fileno(), one.family, one.type) for one in server.sockets]
    server.close()
    waiting: list[socket.socket] = []
    for copy in copies:
        with copy, contextlib.suppress(OSError):  # nobody waits any more
            copy.setblocking(False)
            while len(waiting) < BACKLOG:
                waiting.append(copy.accept()[0])
    for line in waiting:
        line.setblocking(False)
        with contextlib.suppress(OSError):  # it went away meanwhile
            await front.loop.connect_accepted_socket(front.connect, line)


async def _emptied(front: Front, limit_s: float) -> bool:
    """Waits until no connection is open, at most so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            await front.empty.wait()
    return front.empty.is_set()
