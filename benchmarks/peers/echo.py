"""The floor of the handle figures: two processes, a Unix socket, uvloop, 64 bytes there and back, no protocol at all.

``python -m benchmarks.peers.echo PATH`` answers; ``... PATH SECONDS`` asks and prints its round trip as JSON. It tells
how busy the machine is: a round trip of a handle cannot be shorter than this one.
"""

from __future__ import annotations

import asyncio
import json
import sys
from time import perf_counter

import uvloop

from benchmarks.peers.program import end_with_stdin
from benchmarks.stats import percentile

SIZE = 64
SAMPLE_MAX = 200_000
CONNECT_TRIES, CONNECT_AGAIN_S = 1000, 0.005


class _Answers(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)  # type: ignore[attr-defined]


class _Asks(asyncio.Protocol):
    def __init__(self, seconds: float, ended: asyncio.Future[list[float]]) -> None:
        self._seconds = seconds
        self._ended = ended
        self._times: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._until = perf_counter() + self._seconds
        self._send()

    def _send(self) -> None:
        self._sent = perf_counter()
        self._transport.write(bytes(SIZE))  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        self._times.append(now - self._sent)
        if now < self._until and len(self._times) < SAMPLE_MAX:
            self._send()
        else:
            self._ended.set_result(self._times)
            self._transport.close()


async def _serve(path: str) -> None:
    server = await asyncio.get_running_loop().create_unix_server(_Answers, path)
    await server.serve_forever()


async def _ask(path: str, seconds: float) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    for left in reversed(range(CONNECT_TRIES)):
        ended: asyncio.Future[list[float]] = loop.create_future()
        try:
            await loop.create_unix_connection(lambda ended=ended: _Asks(seconds, ended), path)  # type: ignore[misc]
            break
        except OSError:
            if not left:
                raise
            await asyncio.sleep(CONNECT_AGAIN_S)
    times = await asyncio.wait_for(ended, seconds + 10)
    return {"p50_us": percentile(times, 50) * 1e6, "p99_us": percentile(times, 99) * 1e6, "calls": len(times)}


if __name__ == "__main__":
    if len(sys.argv) == 2:
        end_with_stdin()
        uvloop.run(_serve(sys.argv[1]))
    else:
        print(json.dumps(uvloop.run(_ask(sys.argv[1], float(sys.argv[2])))))
