"""grpc.aio between processes, over Unix sockets: ``python -m benchmarks.peers.grpc_aio PORT APP``.

The program is the caller; each callee is a process of its own, started with the path it listens at and that of the one
behind it. Generic handlers and plain bytes: no message classes, nothing to encode but the argument itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy

from benchmarks.peers import calling
from benchmarks.peers.program import answer_lines, end_with_stdin

OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
READY_MAX_S = 20.0


# -- the callee -----------------------------------------------------------------------------------


class Callee(grpc.GenericRpcHandler):
    """Echo, items and take; with somebody behind it, it passes on."""

    def __init__(self, behind: str | None) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix:{behind}", options=OPTIONS) if behind else None

    def service(self, details: Any) -> Any:
        if details.method == "/items":
            return grpc.unary_stream_rpc_method_handler(self.items)
        return grpc.unary_unary_rpc_method_handler(self.echo if details.method == "/echo" else self.take)

    async def echo(self, data: bytes, context: Any) -> bytes:
        if self._channel is None:
            return data
        return await self._channel.unary_unary("/echo")(data)

    async def items(self, data: bytes, context: Any) -> AsyncIterator[bytes]:
        if self._channel is not None:
            async for item in self._channel.unary_stream("/items")(data):
                yield item
            return
        for number in range(int(data)):
            yield number.to_bytes(8, "little")

    async def take(self, data: bytes, context: Any) -> bytes:
        return b"%d" % calling.touched(numpy.frombuffer(data, numpy.uint8))


async def serve(path: str, behind: str | None) -> None:
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers([Callee(behind)])
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    await server.wait_for_termination()


# -- the caller -----------------------------------------------------------------------------------


class Caller:
    """The measurements, on a loop of its own."""

    def __init__(self, folder: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._folder = folder
        self._channels: dict[str, Any] = {}

    async def connect(self, names: list[str]) -> None:
        for name in names:
            channel = grpc.aio.insecure_channel(f"unix:{self._folder / name}", options=OPTIONS)
            await asyncio.wait_for(channel.channel_ready(), READY_MAX_S)
            self._channels[name] = channel

    def measure(self, what: str, seconds: float, **how: Any) -> dict[str, float]:
        return self._loop.run_until_complete(getattr(self, what)(seconds=seconds, **how))

    async def latency(self, chain: int, seconds: float) -> dict[str, float]:
        call = self._channels[f"chain{chain}"].unary_unary("/echo")
        return await calling.latency(lambda: call(b"1"), seconds)

    async def rate(self, chain: int, in_flight: int, seconds: float) -> dict[str, float]:
        call = self._channels[f"chain{chain}"].unary_unary("/echo")
        return await calling.rate(lambda: call(b"1"), seconds, in_flight)

    async def items(self, through: str, seconds: float) -> dict[str, float]:
        channel = self._channels["chain1" if through == "nobody" else "chain2"]
        stream = channel.unary_stream("/items")
        return await calling.items(lambda count: stream(b"%d" % count), seconds)

    async def arrays(self, size: int, seconds: float) -> dict[str, float]:
        call, array = self._channels["chain1"].unary_unary("/take"), numpy.ones(size, numpy.uint8)

        async def one() -> int:
            return int(await call(array.tobytes()))

        return await calling.arrays(one, size, seconds)


def main() -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="skb-grpc-")))
        for number in range(1, 11):
            command = [sys.executable, "-m", "benchmarks.peers.grpc_aio", "--callee", str(folder / f"chain{number}")]
            command += [str(folder / f"chain{number - 1}")] if number > 1 else []
            callee = subprocess.Popen(command, stdin=subprocess.PIPE)
            stack.callback(callee.wait)
            assert callee.stdin is not None
            stack.callback(callee.stdin.close)
        loop = asyncio.new_event_loop()
        caller = Caller(folder, loop)
        loop.run_until_complete(caller.connect(["chain1", "chain2", "chain3", "chain10"]))
        answer_lines({"ping": lambda: None, "measure": caller.measure})


if __name__ == "__main__":
    if sys.argv[1] == "--callee":
        end_with_stdin()
        asyncio.run(serve(sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None))
    else:
        main()
