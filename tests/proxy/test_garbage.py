"""What has ended is freed at once: the proxy lets the collector look rarely, so nothing may wait for it in a circle."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.wire.head import WEBSOCKET, ReplyHead
from tests.proxy.conftest import Run
from tests.proxy.world import TEXT, Client, World, dial, echo, forever, hello, served, until

OURS = ("skate", "websockets.server", "websockets.protocol", "websockets.frames", "httptools", "uvloop")
TIMES = 20
KEY = b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
UPGRADE = b"GET /s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + KEY
encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode


async def talker(exchange: Exchange) -> None:
    """Accepts a WebSocket and says everything again, until the client leaves or says ``x``."""
    assert exchange.head.kind == WEBSOCKET
    await exchange.send(encode({"type": "websocket.accept"}))
    while (chunk := await exchange.receive()) is not None:
        message = decode(chunk)
        if message["type"] == "websocket.disconnect" or message.get("text") == "x":
            break
        await exchange.send(encode({"type": "websocket.send", "text": message["text"]}))
    exchange.end()


async def refuser(exchange: Exchange) -> None:
    exchange.end(encode({"type": "websocket.close"}))


async def streamer(exchange: Exchange) -> None:
    await exchange.start_http(ReplyHead(200, [TEXT]))
    for _ in range(5):
        await exchange.send(b"x" * 1000)
        await asyncio.sleep(0)
    exchange.end()


async def failer(exchange: Exchange) -> None:
    exchange.fail(KeyError("x"), "trace")


def frame(opcode: int, data: bytes) -> bytes:
    return bytes([0x80 | opcode, 0x80 | len(data), 0, 0, 0, 0]) + data


async def one_request(client: Client) -> None:
    assert (await client.ask("/")).status == 200


async def error(client: Client) -> None:
    assert (await client.ask("/fail")).status == 500


async def stream(client: Client) -> None:
    assert len((await client.ask("/stream")).body) == 5000


async def upload(client: Client) -> None:
    client.request("/echo", "POST", headers=[(b"transfer-encoding", b"chunked")])
    client.chunk(b"abc")
    await asyncio.sleep(0.001)
    client.send(b"0\r\n\r\n")
    assert (await client.reply()).text == "abc"


async def late(client: Client) -> None:
    assert (await client.ask("/never", headers=[(b"x-request-timeout-seconds", b"0.003")])).status == 408


async def leave(client: Client) -> None:
    client.request("/never")
    client.writer.transport.abort()


async def garbage(client: Client) -> None:
    client.send(b"\x00garbage\r\n\r\n")
    assert (await client.reply()).status == 400


async def opened(client: Client) -> None:
    client.send(UPGRADE)
    assert (await client.reply()).status == 101
    client.send(frame(1, b"hello"))
    assert await client.reader.readexactly(7) == b"\x81\x05hello"


async def socket_closed_by_client(client: Client) -> None:
    await opened(client)
    client.send(frame(8, b"\x03\xe8"))
    await client.closed()


async def socket_closed_by_application(client: Client) -> None:
    await opened(client)
    client.send(frame(1, b"x"))
    assert (await client.reader.readexactly(2))[0] == 0x88
    client.send(frame(8, b"\x03\xe8"))
    await client.closed()


async def socket_lost(client: Client) -> None:
    await opened(client)
    client.writer.transport.abort()


async def socket_with_a_bad_frame(client: Client) -> None:
    await opened(client)
    client.send(b"\x81\x01a")  # not masked
    await client.closed()


async def socket_refused(client: Client) -> None:
    client.send(UPGRADE.replace(b"/s", b"/refuse"))
    assert (await client.reply()).status == 403


async def bad_handshake(client: Client) -> None:
    client.send(UPGRADE.replace(b"version: 13", b"version: 12"))
    assert (await client.reply()).status == 400


KINDS = [
    one_request, error, stream, upload, late, leave, garbage, opened, socket_closed_by_client, socket_lost,
    socket_closed_by_application, socket_with_a_bad_frame, socket_refused, bad_handshake,
]  # fmt: skip
APPS = {
    "/": hello,
    "/fail": failer,
    "/stream": streamer,
    "/echo": echo,
    "/never": forever,
    "/s": talker,
    "/refuse": refuser,
}


def alive() -> Counter[str]:
    """Objects of ours, by type."""
    kinds = (type(found) for found in gc.get_objects())
    return Counter(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds if str(kind.__module__).startswith(OURS))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_for_the_collector(run: Run, kind: Callable[[Client], Awaitable[None]]) -> None:
    async def once(made: World) -> None:
        async with dial(made) as client:
            await kind(client)
        await until(lambda: not made.front.connections and made.balanced())
        for replica in made.replicas.values():
            await until(lambda replica=replica: not replica.tasks)
            replica.exchanges.clear()
            replica.cancelled.clear()

    async def test() -> None:
        async with served(APPS) as made:
            for _ in range(3):
                await once(made)
            gc.collect()
            before = alive()
            gc.disable()
            try:
                for _ in range(TIMES):
                    await once(made)
                await asyncio.sleep(0)
                more = {name: count for name, count in (alive() - before).items() if count >= TIMES // 2}
            finally:
                gc.enable()
            assert more == {}

    run(test())


def test_the_count_sees_a_circle(run: Run) -> None:
    class Circle:
        __module__ = "skate.test"
        me: Any

    before = alive()
    gc.disable()
    try:
        Circle().me = None
        circle = Circle()
        circle.me = circle
        del circle
        assert alive() - before == {f"skate.test.{Circle.__qualname__}": 1}
    finally:
        gc.enable()
