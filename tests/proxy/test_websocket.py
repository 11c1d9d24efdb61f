"""WebSockets through the real server: both ways, accepted, rejected, ended from either side."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from skate.core.specs import HttpOptions
from skate.dataplane.proxy import connection as proxy_connection
from skate.dataplane.proxy import websocket
from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.wire.head import WEBSOCKET, decode_http
from tests.proxy.conftest import Run
from tests.proxy.world import Client, Handler, dial, hello, served, until

encode = msgspec.msgpack.encode


async def say(exchange: Exchange, kind: str, **message: Any) -> None:
    await exchange.send(encode({"type": f"websocket.{kind}", **message}))


heard: list[dict[str, Any]] = []


async def echo(exchange: Exchange) -> None:
    protocols = decode_http(exchange.head.http).subprotocols
    await say(exchange, "accept", subprotocol=protocols[-1] if protocols else None)
    while (chunk := await exchange.receive()) is not None:
        message = msgspec.msgpack.decode(chunk)
        heard.append(message)
        if message["type"] == "websocket.disconnect":
            break
        if message.get("text") == "close":
            await say(exchange, "close", code=4321, reason="as you wish")
            break
        await exchange.send(encode({**message, "type": "websocket.send"}))
    exchange.end()


def saying(*messages: dict[str, Any], error: BaseException | None = None) -> Handler:
    async def handler(exchange: Exchange) -> None:
        for message in messages:
            await exchange.send(encode(message))
        if error is None:
            exchange.end()
        else:
            exchange.fail(error, "trace")

    return handler


ACCEPT: dict[str, Any] = {"type": "websocket.accept", "subprotocol": None, "headers": []}


def test_messages_go_both_ways_with_a_subprotocol(run: Run) -> None:
    async def test() -> None:
        async with served({"/ws": echo}) as made:
            url = f"ws://127.0.0.1:{made.port}/ws/x?q=1"
            async with connect(url, subprotocols=["a", "b"], additional_headers={"X-Request-Id": "w1"}) as socket:
                assert socket.subprotocol == "b"
                for message in ("text", b"bytes", "", b"", "ü" * 100_000, b"z" * 1_000_000):
                    await socket.send(message)
                    assert await socket.recv() == message
            head = made.replicas["/ws"].exchanges[0].head
            assert (head.kind, head.request_id, head.route, head.timeout_s) == (WEBSOCKET, "w1", "/ws", None)
            http = decode_http(head.http)
            assert (http.path, http.query, http.root_path) == ("/ws/x", b"q=1", "/ws")
            assert http.subprotocols == ["a", "b"]
            await until(made.balanced)
            assert made.router.ledger.report().ok == 1

    run(test())


def test_close_codes_go_both_ways(run: Run) -> None:
    async def test() -> None:
        async with served({"/": echo}) as made:
            url = f"ws://127.0.0.1:{made.port}/"
            async with connect(url) as socket:
                await socket.send("close")
                with pytest.raises(ConnectionClosed) as ended:
                    await socket.recv()
                assert ended.value.rcvd is not None
                assert (ended.value.rcvd.code, ended.value.rcvd.reason) == (4321, "as you wish")
            heard.clear()
            async with connect(url) as socket:
                await socket.close(4005, "enough")
            await until(lambda: heard)
            assert (heard[0]["type"], heard[0]["code"]) == ("websocket.disconnect", 4005)
            await until(made.balanced)

    run(test())


def test_a_client_that_vanishes_is_told_to_the_application(run: Run) -> None:
    async def test() -> None:
        async with served({"/": echo}) as made:
            socket = await connect(f"ws://127.0.0.1:{made.port}/")
            heard.clear()
            socket.transport.abort()
            await until(lambda: heard)
            assert heard[0]["type"] == "websocket.disconnect"
            await until(made.balanced)

    run(test())


def test_an_application_that_ignores_the_end_is_cancelled(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "LEAVE_GRACE_S", 0.05)

    async def test() -> None:
        async def deaf(exchange: Exchange) -> None:
            await say(exchange, "accept")
            await asyncio.Event().wait()

        async with served({"/": deaf}) as made:
            async with connect(f"ws://127.0.0.1:{made.port}/"):
                pass
            await until(lambda: made.replicas["/"].cancelled == ["the client disconnected"])
            await until(made.balanced)

    run(test())


@pytest.mark.parametrize(
    ("handler", "status", "words"),
    [
        (saying({"type": "websocket.close", "code": 4000}), 403, ""),
        (saying(), 403, ""),
        (
            saying(
                {"type": "websocket.http.response.start", "status": 401, "headers": [(b"x-why", b"no")]},
                {"type": "websocket.http.response.body", "body": b"who are you"},
            ),
            401,
            "who are you",
        ),
        (saying(error=ZeroDivisionError("secret")), 500, "raised ZeroDivisionError while"),
    ],
)
def test_a_handshake_that_is_not_accepted(run: Run, handler: Handler, status: int, words: str) -> None:
    async def test() -> None:
        async with served({"/": handler}) as made:
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"ws://127.0.0.1:{made.port}/")
            assert refused.value.response.status_code == status
            assert words in (refused.value.response.body or b"").decode()
            await until(made.balanced)

    run(test())


def test_a_path_of_nobody_is_404(run: Run) -> None:
    async def test() -> None:
        async with served({"/a": hello}) as made:
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"ws://127.0.0.1:{made.port}/b")
            assert refused.value.response.status_code == 404
            assert b"/-/routes" in (refused.value.response.body or b"")

    run(test())


@pytest.mark.parametrize(
    ("handler", "code", "words"),
    [
        (saying(ACCEPT), 1000, ""),
        (saying(ACCEPT, {"type": "websocket.close", "code": 1006}), 1011, ""),
        (saying(ACCEPT, {"type": "websocket.close"}), 1000, ""),
        (saying(ACCEPT, {"type": "websocket.close", "code": 3000, "reason": "ü" * 100}), 3000, "ü" * 61),
        (saying(ACCEPT, error=KeyError("secret")), 1011, "KeyError in request"),
    ],
)
def test_how_an_accepted_connection_ends(run: Run, handler: Handler, code: int, words: str) -> None:
    async def test() -> None:
        async with served({"/": handler}) as made:
            async with connect(f"ws://127.0.0.1:{made.port}/") as socket:
                with pytest.raises(ConnectionClosed) as ended:
                    await socket.recv()
            assert ended.value.rcvd is not None
            assert ended.value.rcvd.code == code
            assert words in ended.value.rcvd.reason
            assert "secret" not in ended.value.rcvd.reason
            await until(made.balanced)

    run(test())


def test_a_replica_that_dies_closes_with_1011(run: Run) -> None:
    async def test() -> None:
        async def die(exchange: Exchange) -> None:
            await say(exchange, "accept")
            await exchange.receive()
            exchange.session.transport.abort()

        async with served({"/": die}) as made:
            async with connect(f"ws://127.0.0.1:{made.port}/") as socket:
                await socket.send("x")
                with pytest.raises(ConnectionClosed) as ended:
                    await socket.recv()
            assert ended.value.rcvd is not None
            assert ended.value.rcvd.code == 1011
            assert "died" in ended.value.rcvd.reason
            await until(made.balanced)

    run(test())


def test_the_end_of_the_proxy_closes_with_1012(run: Run) -> None:
    async def test() -> None:
        async with served({"/": echo}, drain_s=0.05) as made:
            socket = await connect(f"ws://127.0.0.1:{made.port}/")
        with pytest.raises(ConnectionClosed) as ended:
            await socket.recv()
        assert ended.value.rcvd is not None
        assert ended.value.rcvd.code == 1012

    run(test())


def test_a_client_that_leaves_before_a_replica_was_free_is_forgotten(run: Run) -> None:
    async def test() -> None:
        async with served({"/": echo}, max_ongoing_requests=0) as made:
            async with dial(made) as client:
                upgrade(client)
                await until(lambda: made.router.ledger.open == 1)
            await until(made.balanced)
            assert not made.replicas["/"].exchanges

    run(test())


def upgrade(client: Client, headers: tuple[tuple[bytes, bytes], ...] = (), version: bytes = b"13") -> None:
    client.request(
        headers=[
            (b"Connection", b"keep-alive, Upgrade"),
            (b"Upgrade", b"WebSocket"),
            (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
            (b"Sec-WebSocket-Version", version),
            *headers,
        ]
    )


def frame(opcode: int, data: bytes, fin: bool = True) -> bytes:
    """A frame as a client sends it, masked with zeros."""
    assert len(data) < 65_536
    size = bytes([128 | len(data)]) if len(data) < 126 else bytes([128 | 126]) + len(data).to_bytes(2, "big")
    return bytes([(128 if fin else 0) | opcode]) + size + b"\0\0\0\0" + data


def test_the_handshake_literally(run: Run) -> None:
    async def test() -> None:
        headers = [(b"X-Own", b"1"), (b"Sec-WebSocket-Accept", b"theirs"), (b"Upgrade", b"theirs")]
        accept = {**ACCEPT, "headers": headers, "subprotocol": "b"}
        async with served({"/": saying(accept)}) as made, dial(made) as client:
            upgrade(client, ((b"X-Request-Id", b"w1"), (b"Sec-WebSocket-Protocol", b"a, b")))
            reply = await client.reply()
            assert reply.status == 101
            del reply.headers[-1]  # the date
            assert reply.headers == [
                (b"upgrade", b"websocket"),
                (b"connection", b"Upgrade"),
                (b"sec-websocket-accept", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
                (b"x-own", b"1"),
                (b"sec-websocket-protocol", b"b"),
                (b"x-request-id", b"w1"),
            ]
            client.send(frame(8, b""))
            assert await client.closed() == b"\x88\x02\x03\xe8"

    run(test())


@pytest.mark.parametrize(
    ("headers", "version", "status"),
    [
        ((), b"12", 400),
        (((b"Sec-WebSocket-Key", b"second"),), b"13", 400),
        (((b"Sec-WebSocket-Protocol", b"a,,\xff"),), b"13", 400),
        (((b"Content-Length", b"3"),), b"13", 400),
    ],
)
def test_what_is_no_handshake(run: Run, headers: tuple[tuple[bytes, bytes], ...], version: bytes, status: int) -> None:
    async def test() -> None:
        async with served({"/": echo}) as made, dial(made) as client:
            upgrade(client, headers, version)
            assert (await client.reply()).status == status
            assert await client.closed() == b""
            assert not made.replicas["/"].exchanges

    run(test())


def test_an_accept_that_http_does_not_allow_is_500(run: Run) -> None:
    async def test() -> None:
        bad = {**ACCEPT, "headers": [(b"x-bad", b"a\r\nb: c")]}
        async with served({"/": saying(bad)}) as made, dial(made) as client:
            upgrade(client)
            reply = await client.reply()
            assert (reply.status, "a header that HTTP does not allow" in reply.text) == (500, True)
            await until(made.balanced)

    run(test())


def test_frames_in_all_forms(run: Run) -> None:
    async def test() -> None:
        async with served({"/": echo}) as made, dial(made) as client:
            upgrade(client)
            client.send(frame(1, b"early"))  # before it was accepted
            assert (await client.reply()).status == 101
            assert await client.reader.readexactly(7) == b"\x81\x05early"
            client.send(frame(1, "ü".encode()[:1], fin=False) + frame(9, b"ping") + frame(0, "ü".encode()[1:]))
            assert await client.reader.readexactly(6) == b"\x8a\x04ping"
            assert await client.reader.readexactly(4) == b"\x81\x02" + "ü".encode()
            for byte in frame(2, b"bytewise"):
                client.send(bytes([byte]))
                await asyncio.sleep(0)
            assert await client.reader.readexactly(10) == b"\x82\x08bytewise"
            many = frame(2, b"x") * 20_000
            client.send(many)
            assert await client.reader.readexactly(60_000) == b"\x82\x01x" * 20_000

    run(test())


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(1, b"\xff"), 1007),
        (frame(3, b""), 1002),
        (frame(0, b""), 1002),
        (b"\x81\x01a", 1002),  # not masked
        (frame(2, b"x" * 60_000, fin=False) + frame(0, b"x" * 60_000), 1009),
    ],
)
def test_frames_that_break_the_protocol(run: Run, data: bytes, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "MESSAGE_MAX", 100_000)

    async def test() -> None:
        heard.clear()
        async with served({"/": echo}) as made, dial(made) as client:
            upgrade(client)
            assert (await client.reply()).status == 101
            client.send(data)
            said = await client.closed()
            assert (said[0], int.from_bytes(said[2:4], "big")) == (0x88, code)
            await until(made.balanced)
            assert [message["code"] for message in heard] == [code]

    run(test())


def test_a_slow_reader_stops_the_application(run: Run) -> None:
    sent = 0

    async def flood(exchange: Exchange) -> None:
        nonlocal sent
        await say(exchange, "accept")
        for _ in range(400):
            await say(exchange, "send", bytes=b"x" * 65_536)
            sent += 1
        exchange.end()

    async def test() -> None:
        async with served({"/": flood}) as made, dial(made) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            upgrade(client)
            before = -1
            while before != sent or not sent:
                before = sent
                await asyncio.sleep(0.05)
            assert sent < 250
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            async with asyncio.timeout(5):
                while sent < 400:
                    await client.reader.read(1 << 20)

    run(test())


def test_a_slow_application_stops_the_client(run: Run) -> None:
    go = asyncio.Event()
    got = bytearray()

    async def late(exchange: Exchange) -> None:
        await say(exchange, "accept")
        await go.wait()
        while len(got) < 30_000_000 and (chunk := await exchange.receive()) is not None:
            got.extend(msgspec.msgpack.decode(chunk)["bytes"])
        exchange.end()

    async def test() -> None:
        async with served({"/": late}) as made, dial(made) as client:
            upgrade(client)
            assert (await client.reply()).status == 101
            client.send(frame(2, b"y" * 60_000) * 500)
            before = -1
            while before != client.writer.transport.get_write_buffer_size():
                before = client.writer.transport.get_write_buffer_size()
                await asyncio.sleep(0.05)
            assert before > 10_000_000
            go.set()
            await until(lambda: len(got) == 30_000_000)

    run(test())


def test_a_client_that_does_not_answer_the_close_is_cut(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_connection, "LINGER_S", 0.1)

    async def test() -> None:
        async with served({"/": saying(ACCEPT)}, HttpOptions(keep_alive_timeout_s=0.1)) as made, dial(made) as client:
            upgrade(client)
            assert (await client.reply()).status == 101
            assert await client.closed() == b"\x88\x02\x03\xe8"
            assert not made.front.connections

    run(test())
