"""One HTTP connection that can also do what no well-behaved client does: read slowly, leave in the middle.

Law: an answer that is not whole raises ``Cut``; nothing is tried again here, so that every request has one outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

LINE_MAX = 1 << 20  # bytes asyncio's reader keeps; more is left with the kernel, which is what makes a reader slow


class Cut(Exception):
    """The connection ended inside an answer, or before it."""


class Line:
    """A connection, opened when first needed and again after it was closed."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.status = 0
        self.headers: dict[str, str] = {}
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(
        self, method: str, path: str, body: bytes = b"", headers: Iterable[str] = (), whole: bool = True
    ) -> None:
        """A request with a body of known length; not ``whole``: with chunks that the caller sends."""
        if self._writer is None or self._writer.is_closing():
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port, limit=LINE_MAX)
        lines = [f"{method} {path} HTTP/1.1", "Host: soak", *headers]
        if not whole:
            lines.append("Transfer-Encoding: chunked")
        elif body or method == "POST":
            lines.append(f"Content-Length: {len(body)}")
        self._writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await self._drained()

    async def chunk(self, data: bytes) -> None:
        """One piece of a chunked body; an empty one ends it."""
        assert self._writer is not None
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self._drained()

    async def _drained(self) -> None:
        assert self._writer is not None
        try:
            await self._writer.drain()
        except ConnectionError as error:  # an early answer may have come all the same; reading tells
            if self._reader is None or self._reader.at_eof():
                raise Cut(repr(error)) from None

    async def head(self) -> int:
        """The status of the next answer."""
        assert self._reader is not None
        try:
            text = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self.leave()
            raise Cut(f"before the answer: {error!r}") from None
        first, *lines = text.split("\r\n")[:-2]
        self.status = int(first.split(" ")[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return self.status

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        assert self._reader is not None
        try:
            if "content-length" in self.headers:
                yield await self._reader.readexactly(int(self.headers["content-length"]))
            elif self.headers.get("transfer-encoding") == "chunked":
                while size := int((await self._reader.readuntil(b"\r\n"))[:-2], 16):
                    yield (await self._reader.readexactly(size + 2))[:-2]
                await self._reader.readexactly(2)
            else:
                raise AssertionError(f"an answer without a length: {self.status} {self.headers}")
        except (asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
            self.leave()
            raise Cut(f"in the middle of the answer: {error!r}") from None
        if self.headers.get("connection") == "close":
            self.leave()

    async def text(self) -> str:
        """The rest of the answer, whole."""
        return b"".join([piece async for piece in self.pieces()]).decode()

    async def ask(self, method: str, path: str, body: bytes = b"", headers: Iterable[str] = ()) -> tuple[int, str]:
        """A request and its whole answer."""
        await self.send(method, path, body, headers)
        return await self.head(), await self.text()

    def leave(self) -> None:
        """Goes away, whatever is under way."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._writer = self._reader = None
