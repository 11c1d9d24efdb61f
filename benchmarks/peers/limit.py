"""The limit: uvloop and httptools, the same bytes for every request. ``python -m benchmarks.peers.limit PORT APP``

Nothing that parses HTTP in Python is faster: where a system comes near it, the load generator is what is measured.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
import uvloop

from benchmarks.peers.program import CHUNK, CHUNKS, HELLO, HOST, end_with_stdin, told


def answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


PIECE = b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK)
STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
ANSWER = answer(HELLO.encode())


class Answers(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_body(self, data: bytes) -> None:
        self.body.append(data)

    def on_message_complete(self) -> None:
        if self.url == b"/json":
            self.transport.write(answer(b"".join(self.body)))
        elif self.url == b"/stream":
            self.transport.write(STREAM)
            for _ in range(CHUNKS):
                self.transport.write(PIECE)
            self.transport.write(b"0\r\n\r\n")
        else:
            self.transport.write(ANSWER)


async def main() -> None:
    port, _ = told()
    server = await asyncio.get_running_loop().create_server(Answers, HOST, port)
    await server.serve_forever()


if __name__ == "__main__":
    end_with_stdin()
    uvloop.run(main())
