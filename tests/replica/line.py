"""A real line into an Invoker, within one process: the caller's end of it, for tests."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from skate.authoring.code import dumps, loads
from skate.core.clock import Clock, SystemClock
from skate.dataplane.replica.asgi import decode_message, encode_message
from skate.dataplane.replica.callable import construct
from skate.dataplane.replica.invoke import Invoker
from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.transport.failure import decode_failure, rebuild
from skate.dataplane.transport.peers import Peer, connect, listen
from skate.dataplane.wire.frames import split_head
from skate.dataplane.wire.head import (
    HTTP,
    PYTHON,
    WEBSOCKET,
    CallHead,
    HttpHead,
    ReplyHead,
    decode_reply,
    encode_head,
    encode_http,
)
from skate.dataplane.wire.items import split_segments

WAIT_S = 5.0
_names = itertools.count(1)


async def until(condition: Callable[[], object], limit_s: float = WAIT_S) -> None:
    """Looks at a condition until it holds."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.001)


class Asked:
    """One call as its caller sees it."""

    def __init__(self, peer: Peer, credit: bool) -> None:
        self.peer = peer
        self.credit = credit
        self.call = 0
        self.head: ReplyHead | None = None
        self.chunks: list[bytes] = []
        self.frames = 0
        self.error: BaseException | None = None
        self.refused = False
        self.started = False
        self.ended = asyncio.Event()

    def wire_started(self) -> None:
        self.started = True

    def wire_chunk(self, body: bytes, headed: bool, last: bool) -> None:
        self.frames += 1
        if headed:
            raw, data = split_head(body)
            self.head = decode_reply(raw)
        else:
            data = body
        if data:
            self.chunks.append(bytes(data))
        if last:
            self.ended.set()
        elif self.credit:
            self.peer.take(self.call, len(body))

    def wire_items(self, body: bytes) -> None:
        self.frames += 1
        for run, data in split_segments(body):
            self.chunks += [dumps(value) for value in loads(data)] if run else [data]
        if self.credit:
            self.peer.take(self.call, len(body))

    def wire_failed(self, body: bytes) -> None:
        self.error = rebuild(decode_failure(body))
        self.ended.set()

    def wire_refused(self, returned: bool) -> None:
        self.refused = True
        self.ended.set()

    def wire_credit(self) -> None:
        pass

    def wire_lost(self, error: Exception | None) -> None:
        self.ended.set()

    async def end(self) -> Asked:
        async with asyncio.timeout(WAIT_S):
            await self.ended.wait()
        return self

    def cancel(self, reason: str = "the test says so") -> None:
        self.peer.cancel(self.call, reason)

    def send(self, data: bytes, last: bool = False) -> None:
        self.peer.send(self.call, data, last)

    def say(self, type: str, **fields: Any) -> None:
        self.send(encode_message({"type": type, **fields}))

    async def value(self) -> Any:
        await self.end()
        if self.error is not None:
            raise self.error
        return loads(b"".join(self.chunks))

    async def items(self) -> list[Any]:
        await self.end()
        if self.error is not None:
            raise self.error
        return [loads(chunk) for chunk in self.chunks]

    async def body(self) -> bytes:
        await self.end()
        if self.error is not None:
            raise self.error
        return b"".join(self.chunks)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [decode_message(chunk) for chunk in self.chunks]

    def header(self, name: str) -> str | None:
        assert self.head is not None
        found = dict(self.head.headers).get(name.encode())
        return None if found is None else found.decode()


class Line:
    """An Invoker and a connection to it."""

    def __init__(self, invoker: Invoker, peer: Peer) -> None:
        self.invoker = invoker
        self.target = invoker.target
        self.peer = peer
        self.done = 0

    def accept(self, exchange: Exchange) -> None:
        self.invoker.run(exchange, self._count)

    def _count(self) -> None:
        self.done += 1

    def _open(self, head: CallHead, body: bytes, complete: bool, credit: bool = True) -> Asked:
        asked = Asked(self.peer, credit)
        asked.call = self.peer.open(asked, encode_head(head), body, complete)
        return asked

    def python(
        self,
        method: str,
        *args: Any,
        stream: bool = False,
        timeout_s: float | None = None,
        credit: bool = True,
        **kwargs: Any,
    ) -> Asked:
        payload = dumps((args, kwargs)) if args or kwargs else b""
        return self._open(CallHead(PYTHON, method, "rid-1", timeout_s, stream), payload, True, credit)

    def http(
        self,
        path: str = "/",
        method: str = "GET",
        body: bytes = b"",
        *,
        complete: bool = True,
        root_path: str = "",
        query: bytes = b"",
        headers: list[tuple[bytes, bytes]] | None = None,
        timeout_s: float | None = None,
    ) -> Asked:
        all_headers = [(b"host", b"skate.test"), *(headers or [])]
        http = HttpHead(method, "http", path, path.encode(), query, root_path, all_headers, ("127.0.0.1", 5), ("h", 80))
        head = CallHead(HTTP, "__call__", "rid-1", timeout_s, route=root_path or "/", http=encode_http(http))
        return self._open(head, body, complete)

    def websocket(self, path: str = "/", subprotocols: list[str] | None = None) -> Asked:
        headers = [(b"host", b"skate.test")]
        http = HttpHead("GET", "http", path, path.encode(), b"", "", headers, None, None, "1.1", subprotocols or [])
        return self._open(CallHead(WEBSOCKET, "", "rid-1", http=encode_http(http)), b"", False)

    async def idle(self) -> None:
        await until(lambda: self.invoker.ongoing == 0)


@asynccontextmanager
async def line_to(
    code: Any, *args: Any, clock: Clock | None = None, max_threads: int = 1, asgi: Any = None, state: Any = None
) -> AsyncIterator[Line]:
    """Constructs the target, listens, connects."""
    target = await construct("app", "Dep", code, args, {})
    target.asgi, target.state = asgi, state
    invoker = Invoker(target, clock or SystemClock(), max_threads)
    address = f"memory:line-{next(_names)}"
    lines: list[Line] = []
    listener = await listen(address, lambda exchange: lines[0].accept(exchange), "replica")
    peer = await connect(address, "test")
    lines.append(Line(invoker, peer))
    try:
        yield lines[0]
    finally:
        peer.close()
        await asyncio.sleep(0)
        await invoker.close(0.0)
        await listener.close()
        await asyncio.sleep(0)
