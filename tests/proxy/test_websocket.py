"""WebSockets through the real server: both ways, accepted, rejected, ended from either side."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from skate.dataplane.proxy import websocket
from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.wire.head import WEBSOCKET
from tests.proxy.world import LIMIT_S, Client, Handler, hello, served, until, world

encode = msgspec.msgpack.encode


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(2 * LIMIT_S):
            await test

    asyncio.run(bounded())


async def say(exchange: Exchange, kind: str, **message: Any) -> None:
    await exchange.send(encode({"type": f"websocket.{kind}", **message}))


heard: list[dict[str, Any]] = []


async def echo(exchange: Exchange) -> None:
    protocols = exchange.head.http.subprotocols if exchange.head.http else []
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


def test_messages_go_both_ways_with_a_subprotocol() -> None:
    async def test() -> None:
        async with served({"/ws": echo}) as (made, port):
            url = f"ws://127.0.0.1:{port}/ws/x?q=1"
            async with connect(url, subprotocols=["a", "b"], additional_headers={"X-Request-Id": "w1"}) as socket:
                assert socket.subprotocol == "b"
                for message in ("text", b"bytes", "", b"", "ü" * 100_000, b"z" * 1_000_000):
                    await socket.send(message)
                    assert await socket.recv() == message
            head = made.replicas["/ws"].exchanges[0].head
            assert (head.kind, head.request_id, head.route, head.timeout_s) == (WEBSOCKET, "w1", "/ws", None)
            assert head.http is not None
            assert (head.http.path, head.http.query, head.http.root_path) == ("/ws/x", b"q=1", "/ws")
            assert head.http.subprotocols == ["a", "b"]
            await until(made.balanced)
            assert made.router.ledger.report().ok == 1

    run(test())


def test_close_codes_go_both_ways() -> None:
    async def test() -> None:
        async with served({"/": echo}) as (made, port):
            url = f"ws://127.0.0.1:{port}/"
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


def test_a_client_that_vanishes_is_told_to_the_application() -> None:
    async def test() -> None:
        async with served({"/": echo}) as (made, port):
            socket = await connect(f"ws://127.0.0.1:{port}/")
            heard.clear()
            socket.transport.abort()
            await until(lambda: heard)
            assert heard[0]["type"] == "websocket.disconnect"
            await until(made.balanced)

    run(test())


def test_an_application_that_ignores_the_end_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "LEAVE_GRACE_S", 0.05)

    async def test() -> None:
        async def deaf(exchange: Exchange) -> None:
            await say(exchange, "accept")
            await asyncio.Event().wait()

        async with served({"/": deaf}) as (made, port):
            async with connect(f"ws://127.0.0.1:{port}/"):
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
def test_a_handshake_that_is_not_accepted(handler: Handler, status: int, words: str) -> None:
    async def test() -> None:
        async with served({"/": handler}) as (made, port):
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"ws://127.0.0.1:{port}/")
            assert refused.value.response.status_code == status
            assert words in (refused.value.response.body or b"").decode()
            await until(made.balanced)

    run(test())


def test_a_path_of_nobody_is_404() -> None:
    async def test() -> None:
        async with served({"/a": hello}) as (_, port):
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"ws://127.0.0.1:{port}/b")
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
def test_how_an_accepted_connection_ends(handler: Handler, code: int, words: str) -> None:
    async def test() -> None:
        async with served({"/": handler}) as (made, port):
            async with connect(f"ws://127.0.0.1:{port}/") as socket:
                with pytest.raises(ConnectionClosed) as ended:
                    await socket.recv()
            assert ended.value.rcvd is not None
            assert ended.value.rcvd.code == code
            assert words in ended.value.rcvd.reason
            assert "secret" not in ended.value.rcvd.reason
            await until(made.balanced)

    run(test())


def test_a_replica_that_dies_closes_with_1011() -> None:
    async def test() -> None:
        async def die(exchange: Exchange) -> None:
            await say(exchange, "accept")
            await exchange.receive()
            exchange.session.transport.abort()

        async with served({"/": die}) as (made, port):
            async with connect(f"ws://127.0.0.1:{port}/") as socket:
                await socket.send("x")
                with pytest.raises(ConnectionClosed) as ended:
                    await socket.recv()
            assert ended.value.rcvd is not None
            assert ended.value.rcvd.code == 1011
            assert "died" in ended.value.rcvd.reason
            await until(made.balanced)

    run(test())


def test_the_end_of_the_proxy_closes_with_1012() -> None:
    async def test() -> None:
        async with served({"/": echo}, drain_s=0.05) as (_, port):
            socket = await connect(f"ws://127.0.0.1:{port}/")
        with pytest.raises(ConnectionClosed) as ended:
            await socket.recv()
        assert ended.value.rcvd is not None
        assert ended.value.rcvd.code == 1012

    run(test())


def test_a_client_that_leaves_before_a_replica_was_free_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "LEAVE_GRACE_S", 0.01)

    async def test() -> None:
        async with world({"/": echo}, max_ongoing_requests=0) as made:
            client = Client("/", type="websocket", scheme="ws", subprotocols=[])
            client.inbox.put_nowait({"type": "websocket.connect"})
            running = asyncio.ensure_future(client.run(made.proxy))
            await until(lambda: made.router.ledger.open == 1)
            client.inbox.put_nowait({"type": "websocket.disconnect", "code": 1005})
            await running
            assert made.balanced()
            assert not made.replicas["/"].exchanges

    run(test())
