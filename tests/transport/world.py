"""What the tests of the transport share: a sink that notes what it hears, and the other side as raw bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.transport.memory import LISTENERS, connect_memory
from skate.dataplane.transport.peers import Listener, Peer
from skate.dataplane.wire.connection import Connection
from skate.dataplane.wire.frames import ASKS, Frame
from skate.dataplane.wire.head import PYTHON, CallHead, encode_head

LIMIT_S = 10.0

Open = Callable[[Callable[[Exchange], None]], Awaitable[tuple[Listener, Peer]]]
Scene = Callable[[Open], Awaitable[None]]
Play = Callable[[Scene], None]


def head(kind: int = PYTHON) -> bytes:
    return encode_head(CallHead(kind, "m", "r1"))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.001)


class Heard:
    """A sink that notes what it hears. A second end raises, which is logged as an error, which fails the test."""

    def __init__(self, peer: Peer, takes: bool = True) -> None:
        self.peer = peer
        self.takes = takes
        self.id = 0
        self.chunks: list[bytes] = []
        self.marks: list[str] = []
        self.failure = b""
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def open(self, body: bytes = b"", complete: bool = True, how: int = ASKS) -> Heard:
        self.id = self.peer.open(self, head(), body, complete, how)
        return self

    async def ends(self) -> str:
        async with asyncio.timeout(LIMIT_S):
            return await self.end

    def wire_started(self) -> None:
        self.marks.append("started")

    def wire_chunk(self, body: bytes, headed: bool, last: bool) -> None:
        assert not self.end.done()
        self.chunks.append(body)
        if last:
            self.end.set_result("last")
        elif self.takes:
            self.peer.take(self.id, len(body))

    def wire_failed(self, body: bytes) -> None:
        self.failure = body
        self.end.set_result("failed")

    def wire_refused(self, returned: bool) -> None:
        self.end.set_result("returned" if returned else "refused")

    def wire_credit(self) -> None:
        self.marks.append("credit")

    def wire_lost(self, error: Exception | None) -> None:
        self.end.set_result("lost")


class Raw(asyncio.Protocol):
    """A side that says what the test wants, byte for byte, and keeps what it hears."""

    all: list[Raw] = []  # of this test

    def __init__(self) -> None:
        Raw.all.append(self)
        self.heard = bytearray()
        self.lost = False
        self.half = False  # the other side shut its sending half, or closed
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard += data

    def eof_received(self) -> bool:
        self.half = True
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True

    def say(self, data: bytes) -> None:
        self.transport.write(data)

    def frames(self, role: str) -> list[Frame]:
        """What was heard, as frames after the hello; ``role`` is that of this side."""
        wire = Connection(role)  # type: ignore[arg-type]
        for _ in range(20 if role == "caller" else 0):
            wire.open(False)
        return wire.feed(bytes(self.heard))


async def dial(address: str) -> Raw:
    """A raw caller."""
    loop = asyncio.get_running_loop()
    raw = Raw()
    scheme, _, rest = address.partition(":")
    if scheme == "memory":
        connect_memory(rest, raw)
    elif scheme == "unix":
        await loop.create_unix_connection(lambda: raw, rest)
    else:
        host, _, port = rest.rpartition(":")
        await loop.create_connection(lambda: raw, host, int(port))
    return raw


@asynccontextmanager
async def raw_callee(address: str) -> AsyncIterator[tuple[str, Raw]]:
    """Listens at the address as a raw callee of one connection; the address to connect to."""
    loop = asyncio.get_running_loop()
    raw = Raw()
    scheme, _, rest = address.partition(":")
    if scheme == "memory":
        LISTENERS[rest] = lambda: raw
        try:
            yield address, raw
        finally:
            del LISTENERS[rest]
        return
    if scheme == "unix":
        server = await loop.create_unix_server(lambda: raw, rest)
    else:
        server = await loop.create_server(lambda: raw, "127.0.0.1", 0)
        address = f"tcp:127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield address, raw
    finally:
        if raw.transport is not None:
            raw.transport.abort()
        server.close()
