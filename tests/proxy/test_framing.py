"""Where one request ends and the next begins: pipelines, ambiguous and malformed messages, limits. Raw bytes."""

from __future__ import annotations

import asyncio

import pytest

from skate.core.specs import HttpOptions
from skate.dataplane.proxy import connection as proxy_connection
from skate.dataplane.proxy import front as proxy_front
from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.wire.head import ReplyHead, decode_http
from tests.proxy.conftest import Run
from tests.proxy.world import TEXT, Handler, World, ask, dial, echo, forever, hello, served, until

GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def numbered() -> Handler:
    """Answers with path and body; the first to come answers last."""

    async def answer(exchange: Exchange) -> None:
        http = decode_http(exchange.head.http)
        if http.path == "/slow":
            await asyncio.sleep(0.03)
        await exchange.start_http(ReplyHead(200, [TEXT]))
        body = exchange.body
        while (chunk := await exchange.receive()) is not None:
            body += chunk
        await exchange.send(http.path.encode())
        await asyncio.sleep(0)
        exchange.end(b" " + body)

    return answer


PIPELINE = (
    b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"
    b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\nGET / H"
    b"POST /b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"8\r\n\r\n\r\n\r\n\r\n\r\n3;x=y\r\nend\r\n0\r\nTrailer: t\r\n\r\n"
    b"GET /-/healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    b"\r\n\r\n"
    b"GET /c HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n"
)
ANSWERS = [b"/slow ", b"/a GET / H", b"/b \r\n\r\n\r\n\r\nend", b"success", b"/c "]


@pytest.mark.parametrize("cut", [0, 1, 3, 7, 50, 61])
def test_pipelined_requests_are_answered_in_order(run: Run, cut: int) -> None:
    async def test() -> None:
        async with served({"/": numbered()}) as made, dial(made) as client:
            if not cut:
                client.send(PIPELINE)
            else:
                for start in range(0, len(PIPELINE), cut):
                    client.send(PIPELINE[start : start + cut])
                    await asyncio.sleep(0)
            assert [(await client.reply()).body for _ in ANSWERS] == ANSWERS
            assert await client.closed() == b""
            assert made.router.ledger.accepted == 4
            await until(made.balanced)

    run(test())


def test_one_request_is_worked_on_at_a_time_and_what_waits_is_bounded(run: Run) -> None:
    async def test() -> None:
        async with served({"/": forever}, drain_s=0.01) as made, dial(made) as client:
            for _ in range(60):
                client.send((GET + b"\r\n") * 10_000)
            await until(lambda: made.replicas["/"].exchanges)
            await until(lambda: any(connection.paused for connection in made.front.connections))
            (held,) = made.front.connections
            assert len(held.rest) < 400_000
            assert made.router.ledger.accepted == 1

    run(test())


def test_a_flood_of_own_pages_is_answered_without_deep_recursion(run: Run) -> None:
    async def test() -> None:
        async with served({"/": hello}) as made, dial(made) as client:
            client.send(b"GET /-/healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 3000)
            for _ in range(3000):
                assert (await client.reply()).body == b"success"

    run(test())


@pytest.mark.parametrize(
    ("status", "data"),
    [
        (400, b"\x00\x01garbage\r\n\r\n"),
        (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        (400, b"NONSENSE / HTTP/1.1\r\nHost: x\r\n\r\n"),
        (501, b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n"),
        (505, b"GET / HTTP/2.0\r\nHost: x\r\n\r\n"),
        (400, b"GET / HTTP/9.9\r\n\r\n"),
        (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        (505, b"GET /\r\n\r\n"),
        (400, b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n"),
        (400, b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\n\r\n"),
        (400, GET + b"Host: y\r\n\r\n"),
        (400, b"GET / HTTP/1.1\nHost: x\n\n"),
        (400, GET + b"no colon here\r\n\r\n"),
        (400, GET + b"a b: c\r\n\r\n"),
        (400, GET + b"a : c\r\n\r\n"),
        (400, GET + b"a: b\r\n folded\r\n\r\n"),
        (400, GET + b"a: b\x00\r\n\r\n"),
        (400, GET + b"a: b\rc: d\r\n\r\n"),
        (400, POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        (400, POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na"),
        (400, POST + b"Content-Length: 1, 1\r\n\r\na"),
        (400, POST + b"Content-Length: -1\r\n\r\na"),
        (400, POST + b"Content-Length: +1\r\n\r\na"),
        (400, POST + b"Content-Length: 0x1\r\n\r\na"),
        (400, POST + b"Content-Length: \r\n\r\na"),
        (400, POST + b"Content-Length: 99999999999999999999\r\n\r\na"),
        (400, POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (400, POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
        (400, POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (400, POST + b"Transfer-Encoding: chunked\t\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (400, POST + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n"),
        (501, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        (400, POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        (400, POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
        (400, POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        (501, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (400, CHUNKED + b"zz\r\nabc\r\n"),
        (400, CHUNKED + b"0x1\r\na\r\n0\r\n\r\n"),
        (400, CHUNKED + b"-1\r\na\r\n0\r\n\r\n"),
        (400, CHUNKED + b"1 \r\na\r\n0\r\n\r\n"),
        (400, CHUNKED + b"1\na\r\n0\r\n\r\n"),
        (400, CHUNKED + b"1\r\nab\r\n0\r\n\r\n"),
        (400, CHUNKED + b"1;a\nb\r\na\r\n0\r\n\r\n"),
        (400, CHUNKED + b"10000000000000001\r\na\r\n0\r\n\r\n"),
        (400, CHUNKED + b"0\r\n\nGET / HTTP/1.1\r\n\r\n"),
        (400, GET + b"Upgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 5\r\n\r\nabcde"),
    ],
)
@pytest.mark.parametrize("bytewise", [False, True])
def test_what_is_malformed_or_ambiguous_is_refused_and_nothing_behind_it_is_read(
    run: Run, status: int, data: bytes, bytewise: bool
) -> None:
    async def test() -> None:
        async with served({"/": echo}) as made, dial(made) as client:
            data_and_more = data + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
            if not bytewise:
                client.send(data_and_more)
            else:
                for start in range(len(data_and_more)):
                    client.send(data_and_more[start : start + 1])
                    await asyncio.sleep(0)
            reply = await client.reply()
            assert (reply.status, reply.header(b"connection")) == (status, [b"close"])
            assert reply.header(b"content-type") == [b"text/plain; charset=utf-8"]
            assert await client.closed() == b""
            paths = [decode_http(exchange.head.http).path for exchange in made.replicas["/"].exchanges]
            assert "/smuggled" not in paths
            await until(made.balanced)
            assert (await ask(made)).status == 200

    run(test())


@pytest.mark.parametrize(
    ("status", "data"),
    [
        (431, GET + b"a: b\r\n" * 200 + b"\r\n"),
        (431, GET + b"a: " + b"b" * 70_000 + b"\r\n\r\n"),
        (431, GET + b"a: " + b"b" * 70_000),
        (431, GET + b"a" * 70_000),
        (414, b"GET /" + b"a" * 17_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
        (414, b"GET /" + b"a" * 40_000),
        (431, CHUNKED + b"1;" + b"x" * 70_000),
        (431, CHUNKED + b"1\r\na\r\n0\r\n" + b"a: b\r\n" * 12_000),
        (431, CHUNKED + b"1\r\na\r\n0\r\na: " + b"b" * 80_000),
    ],
)
def test_heads_are_bounded(run: Run, status: int, data: bytes) -> None:
    async def test() -> None:
        async with served({"/": echo}) as made, dial(made) as client:
            for start in range(0, len(data), 10_000):
                client.send(data[start : start + 10_000])
                await asyncio.sleep(0.001)
            assert (await client.reply()).status == status
            assert await client.closed() == b""
            await until(made.balanced)

    run(test())


def test_what_is_just_within_the_limits_is_served(run: Run) -> None:
    async def test() -> None:
        async with served({"/": echo}) as made, dial(made) as client:
            client.send(GET + b"a: b\r\n" * 199 + b"\r\n")
            client.send(GET + b"a: " + b"b" * 60_000 + b"\r\n\r\n")
            client.send(b"GET /" + b"a" * 16_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            for _ in range(3):
                assert (await client.reply()).status == 200

    run(test())


async def told(made: World, data: bytes) -> int:
    """The status that data gets which never becomes a request."""
    async with dial(made) as client:
        client.send(data)
        status = (await client.reply()).status
        assert await client.closed() == b""
        return status


def test_what_comes_too_slowly_is_408(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_connection, "HEAD_S", 0.1)
    monkeypatch.setattr(proxy_connection, "STALL_S", 0.1)
    monkeypatch.setattr(proxy_connection, "LINGER_S", 0.1)

    async def test() -> None:
        async with served({"/": echo}, HttpOptions(keep_alive_timeout_s=0.2)) as made:
            for data in (GET, POST + b"Content-Length: 5\r\n\r\nab", CHUNKED, CHUNKED + b"1\r\na\r\n"):
                assert await told(made, data) == 408
            await until(made.balanced)
            async with dial(made) as client:  # one that does not close is cut
                client.send(GET)
                assert (await client.reply()).status == 408
                await until(lambda: not made.front.connections)

    run(test())


def test_idle_connections_are_closed_and_busy_ones_are_not(run: Run) -> None:
    async def test() -> None:
        go = asyncio.Event()

        async def slow(exchange: Exchange) -> None:
            await go.wait()
            exchange.reply_http(ReplyHead(200, [TEXT]), b"late")

        async with served({"/": hello, "/s": slow}, HttpOptions(keep_alive_timeout_s=0.1)) as made:
            async with dial(made) as silent, dial(made) as idle, dial(made) as busy:
                assert (await idle.ask()).text == "hello"
                busy.request("/s")
                assert [await silent.closed(), await idle.closed()] == [b"", b""]
                assert len(made.front.connections) == 1
                go.set()
                assert (await busy.reply()).text == "late"
            await until(lambda: made.front._timer is None)  # nothing ticks while nobody is there

    run(test())


def test_too_many_connections_are_told(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(proxy_front, "CONNECTIONS_MAX", 2)

    async def test() -> None:
        async with served({"/": hello}) as made, dial(made) as one, dial(made) as two:
            assert [(await client.ask()).status for client in (one, two)] == [200, 200]
            for _ in range(2):
                async with dial(made) as third:
                    assert (await third.reply()).status == 503
                    assert await third.closed() == b""
            one.leave()
            await until(lambda: len(made.front.connections) == 1)
            assert (await ask(made)).status == 200
        assert len(caplog.records) == 1

    run(test())
